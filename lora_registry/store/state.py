"""What a log of events adds up to: which repository holds which manifests, and where the tags point.

The catalogue keeps the same as rows, changed one event at a time; ``fsck`` compares the two and
``reindex`` makes the rows from this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from lora_registry.digest import Digest
from lora_registry.store.events import Action, Event

Holding: TypeAlias = tuple[str, Digest]
"""A repository and the digest of a manifest that it holds."""

TagKey: TypeAlias = tuple[str, str]
"""A repository and the name of a tag."""


@dataclass(frozen=True, slots=True)
class Held:
    """Since when a repository holds a manifest, and since when no tag of it points there."""

    created: str
    released: str | None = None


@dataclass(frozen=True, slots=True)
class Tag:
    """Where a tag points; ``generation`` and ``updated`` are those of the event that set it."""

    manifest: Digest
    generation: int
    immutable: bool
    updated: str


@dataclass(slots=True)
class State:
    """Holdings and tags, and how many tags point to each holding."""

    holdings: dict[Holding, Held] = field(default_factory=dict)
    tags: dict[TagKey, Tag] = field(default_factory=dict)
    _pointing: Counter[Holding] = field(default_factory=Counter, compare=False, repr=False)

    @classmethod
    def after(cls, events: Iterable[Event]) -> State:
        """The state that ``events`` lead to, from an empty registry on."""
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Take one more event into account."""
        repository, before, after = event.repository, event.before, event.after
        if event.action in {Action.PUSH, Action.TAG} and event.tag and after:
            held = self.holdings.get((repository, after))
            self.holdings[repository, after] = Held(held.created if held else event.time)
            self._untag(repository, event.tag)
            self.tags[repository, event.tag] = Tag(after, event.sequence, event.immutable, event.time)
            self._pointing[repository, after] += 1
            if before is not None and before != after:
                self._release(repository, before, event.time)
        elif event.action is Action.UNTAG and event.tag and before:
            self._untag(repository, event.tag)
            self._release(repository, before, event.time)
        elif before is not None:
            if self._pointing[repository, before]:
                for name in [
                    key[1] for key, tag in self.tags.items() if key[0] == repository and tag.manifest == before
                ]:
                    self._untag(repository, name)
            self.holdings.pop((repository, before), None)

    def _untag(self, repository: str, name: str) -> None:
        tag = self.tags.pop((repository, name), None)
        if tag is not None:
            self._pointing[repository, tag.manifest] -= 1

    def _release(self, repository: str, manifest: Digest, time: str) -> None:
        """Note that no tag of the repository points to ``manifest`` any more, if so."""
        held = self.holdings.get((repository, manifest))
        if held and not self._pointing[repository, manifest]:
            self.holdings[repository, manifest] = Held(held.created, time)
