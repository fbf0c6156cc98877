"""The one prefix by which all names of an adapter differ from those of a base.

A wrapper around a model puts a prefix on every name; saving or exporting an encoder without its head takes one
off. Different prefixes for different targets would be guessing, so there is one (P-013).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from lora_registry.errors import InconclusiveError


@dataclass(frozen=True, slots=True, order=True)
class Prefix:
    """Put ``added`` before every name, or take ``dropped`` off every name; at most one is not empty."""

    added: str = ""
    dropped: str = ""

    def apply(self, name: str) -> str | None:
        """The name in the base; None where ``name`` lacks the prefix that is dropped."""
        return self.added + name.removeprefix(self.dropped) if name.startswith(self.dropped) else None

    def find(self, name: str, names: Collection[str]) -> str | None:
        """The base's name for the adapter's ``name``; None where the base has none.

        A name outside of the prefixed part, such as ``lm_head.weight`` beside ``transformer.*``, stands for itself.
        """
        return next((candidate for candidate in (self.apply(name), name) if candidate in names), None)

    def __str__(self) -> str:
        return f"+{self.added}" if self.added else f"-{self.dropped}" if self.dropped else "none"


def uniform_prefix(wanted: Iterable[str], names: Collection[str]) -> Prefix | None:
    """The prefix under which most of ``wanted`` are among ``names``; none at all wins over any other.

    Returns:
        None where no name is found under any prefix.

    Raises:
        InconclusiveError: two prefixes do equally well, such as those of an encoder and its decoder.
    """
    by_last = defaultdict(list)
    for name in set(names):
        by_last[name.rpartition(".")[2]].append(name)
    found: Counter[Prefix] = Counter()
    for want in set(wanted):
        for name in by_last[want.rpartition(".")[2]]:
            if name == want:
                found[Prefix()] += 1
            elif name.endswith("." + want):
                found[Prefix(added=name[: -len(want)])] += 1
            elif want.endswith("." + name):
                found[Prefix(dropped=want[: -len(name)])] += 1
    if not found:
        return None
    most = max(found.values())
    best = sorted(prefix for prefix, count in found.items() if count == most)
    if best[0] != Prefix() and len(best) > 1:
        raise InconclusiveError(
            f"the names of the adapter fit the base under several prefixes: {', '.join(map(str, best))}"
        )
    return best[0]
