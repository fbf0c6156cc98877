"""What a conversion did that was not a plain copy, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lora_registry.adapter import Json


class Outcome(StrEnum):
    """What became of one thing, declared from good to bad."""

    KEPT = "kept"
    """Carried exactly, but under another name or shape that is worth saying."""
    DERIVED = "derived"
    """Not in the source; follows from it by a rule that the entry names."""
    DROPPED = "dropped"
    """In the source and not in the result. A loss."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a report: what happened to ``subject``, and why."""

    outcome: Outcome
    subject: str
    reason: str

    def __str__(self) -> str:
        return f"{self.outcome.value} {self.subject}: {self.reason}"


@dataclass(slots=True)
class Report:
    """The account of one conversion. What cannot be carried without changing the meaning is never here:
    it is refused with :class:`lora_registry.errors.UnsupportedError`.
    """

    format: str
    entries: list[Entry] = field(default_factory=list)

    def kept(self, subject: str, reason: str) -> None:
        """Say that ``subject`` was carried exactly, though not literally."""
        self.entries.append(Entry(Outcome.KEPT, subject, reason))

    def derived(self, subject: str, reason: str) -> None:
        """Say that ``subject`` was worked out by a rule."""
        self.entries.append(Entry(Outcome.DERIVED, subject, reason))

    def dropped(self, subject: str, reason: str) -> None:
        """Say that ``subject`` is not in the result."""
        self.entries.append(Entry(Outcome.DROPPED, subject, reason))

    @property
    def losses(self) -> tuple[Entry, ...]:
        """The entries that name something lost."""
        return tuple(entry for entry in self.entries if entry.outcome is Outcome.DROPPED)

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object."""
        return {
            "format": self.format,
            "entries": [
                {"outcome": entry.outcome.value, "subject": entry.subject, "reason": entry.reason}
                for entry in self.entries
            ],
        }
