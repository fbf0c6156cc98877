"""The result of an audit: what was found, what was looked at, and what could not be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lora_registry.adapter import Json
from lora_registry.findings import Finding, Severity
from lora_registry.text import plural

_ORDER = {severity: position for position, severity in enumerate(Severity)}


@dataclass(frozen=True, slots=True)
class Checked:
    """One thing that was looked at: ``count`` of ``what``, and how."""

    what: str
    count: int
    how: str

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object with the three field names."""
        return {"what": self.what, "count": self.count, "how": self.how}


@dataclass(frozen=True, slots=True)
class Skipped:
    """One thing that could not be checked, and why. Never to be read as checked and fine."""

    what: str
    why: str

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object with the two field names."""
        return {"what": self.what, "why": self.why}


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit has to say.

    Attributes:
        findings: from bad to mild, then by rule and place; each once.
        checked: what was looked at.
        skipped: what could not be checked; an audit without findings that skipped things is not a clean bill.
    """

    findings: tuple[Finding, ...]
    checked: tuple[Checked, ...]
    skipped: tuple[Skipped, ...]

    @classmethod
    def of(cls, findings: Iterable[Finding], checked: Iterable[Checked], skipped: Iterable[Skipped]) -> AuditReport:
        """A report with its findings in order and without repetitions."""
        ordered = sorted(set(findings), key=lambda one: (_ORDER[one.severity], one.rule, one.place, one.message))
        return cls(tuple(ordered), tuple(checked), tuple(skipped))

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding; None where there is none."""
        return self.findings[0].severity if self.findings else None

    @property
    def summary(self) -> str:
        """One line for a person: how many findings of each severity, and how much could not be checked."""
        counts = [plural(number, severity.value) for severity, number in self._counts()]
        found = ", ".join(counts) if counts else "no findings"
        return f"{found}; {plural(len(self.skipped), 'check')} could not be made" if self.skipped else found

    def _counts(self) -> list[tuple[Severity, int]]:
        """The severities that occur, from bad to mild."""
        return [(severity, self.count(severity)) for severity in Severity if self.count(severity)]

    def count(self, severity: Severity) -> int:
        """How many findings have ``severity``."""
        return sum(finding.severity is severity for finding in self.findings)

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object: ``counts`` by severity, ``findings``, ``checked`` and ``skipped``."""
        return {
            "counts": {severity.value: self.count(severity) for severity in Severity},
            "findings": [dict[str, Json](finding.to_json()) for finding in self.findings],
            "checked": [one.to_json() for one in self.checked],
            "skipped": [one.to_json() for one in self.skipped],
        }
