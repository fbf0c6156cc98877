"""The event log: what was done to the registry, each event sealed with the hash of the one before it.

The log is the truth about tags; the catalogue's rows are what it adds up to (``state``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.format.canonical import encode


class Action(StrEnum):
    """What happened to a tag, or to a manifest that a repository held."""

    PUSH = "push"
    TAG = "tag"
    UNTAG = "untag"
    DROP = "drop"
    LOST = "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of the log.

    Attributes:
        sequence: 1 for the first event, and one more for each.
        transaction: sequence of the first event that was committed together with this one.
        time: when, RFC 3339 in UTC with microseconds.
        actor: who.
        action: ``push`` and ``tag`` point a tag at ``after``; ``untag`` removes it; ``drop`` takes the
            manifest ``before`` out of a repository; ``lost`` does that with its tags, since its blob is gone.
        repository: where.
        tag: which tag; None for ``drop`` and ``lost``.
        before: digest of the manifest that the tag pointed to, or that was taken out.
        after: digest of the manifest that the tag points to now.
        immutable: whether the tag is immutable now.
        previous: hash of the event before; None for the first.
        hash: sha256 of the canonical JSON of all the other fields.
    """

    sequence: int
    transaction: int
    time: str
    actor: str
    action: Action
    repository: str
    tag: str | None
    before: Digest | None
    after: Digest | None
    immutable: bool
    previous: Digest | None
    hash: Digest = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", Digest.of(encode(self._sealed())))

    def _sealed(self) -> dict[str, Json]:
        return {name: _plain(getattr(self, name)) for name in _TYPES if name != "hash"}

    def to_json(self) -> dict[str, Json]:
        """The event as a JSON object with the field names."""
        return {**self._sealed(), "hash": str(self.hash)}

    @classmethod
    def from_json(cls, document: Json) -> Event:
        """Read what :meth:`to_json` gave.

        Raises:
            ValueError: a field is missing, foreign or of another type, or the hash is not that of the others.
        """
        if not isinstance(document, dict) or set(document) != set(_TYPES):
            raise ValueError(f"an event has the fields {', '.join(_TYPES)}")
        if wrong := [name for name, types in _TYPES.items() if type(document[name]) not in types]:
            raise ValueError(f"the field {wrong[0]} has another type than it should")
        values: dict[str, Any] = dict(document)
        stated = values.pop("hash")
        for name in ("before", "after", "previous"):
            values[name] = None if values[name] is None else Digest.parse(values[name])
        event = cls(**{**values, "action": Action(values["action"])})
        if str(event.hash) != stated:
            raise ValueError(f"event {event.sequence} was changed: its hash is not that of its fields")
        return event

    @property
    def reference(self) -> str:
        """``repository:tag``, or the repository alone."""
        return f"{self.repository}:{self.tag}" if self.tag else self.repository

    @property
    def digest(self) -> Digest | None:
        """The manifest that the event is about."""
        return self.after or self.before


_OPTIONAL = (str, type(None))
_TYPES: dict[str, tuple[type, ...]] = {
    "sequence": (int,),
    "transaction": (int,),
    "time": (str,),
    "actor": (str,),
    "action": (str,),
    "repository": (str,),
    "tag": _OPTIONAL,
    "before": _OPTIONAL,
    "after": _OPTIONAL,
    "immutable": (bool,),
    "previous": _OPTIONAL,
    "hash": (str,),
}
"""The fields of an event as JSON, and the types that each may have."""


def _plain(value: object) -> Json:
    if value is None or isinstance(value, bool | int):
        return value
    return str(value)


def chain_problem(events: Iterable[Event]) -> str | None:
    """The first place where ``events`` are not a whole chain from event 1 on; None where they are."""
    previous: Event | None = None
    for position, event in enumerate(events, 1):
        if event.sequence != position:
            return f"event {event.sequence} stands where event {position} should"
        if event.previous != (previous.hash if previous else None):
            return f"event {position} does not carry the hash of the event before it"
        previous = event
    return None


def timestamp(moment: datetime | None = None) -> str:
    """``moment``, or now, as events spell it; such texts sort like the moments they name."""
    return (moment or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
