"""The one prefix by which all names of an adapter differ from those of an exported graph.

An exporter names tensors after the object that it was given: a wrapper around the model puts a prefix on every
name, the export of an encoder without its head takes one off.
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
        """The name in the graph; None where ``name`` lacks the prefix that is dropped."""
        return self.added + name.removeprefix(self.dropped) if name.startswith(self.dropped) else None

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
            f"the names of the adapter fit the graph under several prefixes: {', '.join(map(str, best))}"
        )
    return best[0]
