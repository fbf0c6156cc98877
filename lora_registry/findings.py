"""A problem is data: which rule, how bad, where, and one sentence.

The same record serves the validator (``format.rules``), the audit (``audit``) and the errors that carry
them, so that every place that shows problems shows them alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from lora_registry.text import printable

_SHOWN = 600
"""Characters of a place, and of a message, that the line shows; the longest key of a tensor has 256."""


FINDINGS = 1000
"""Findings of one rule about one thing; nobody reads more, and a file of 1 MiB breaks a rule 500 000 times."""


class Severity(StrEnum):
    """How bad a finding is; declared from bad to mild."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of looking at something.

    Attributes:
        rule: id of the rule in ``spec/``, such as ``R-014``, or of the audit rule, such as ``A-003``.
        place: where, as a path a person can follow: ``targets/model.q_proj.weight/scale``.
        message: one sentence, without a full stop.
        severity: ``error`` unless said otherwise.
    """

    rule: str
    place: str
    message: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        # Both quote strangers' files: names with escape sequences in them, and values of a megabyte.
        where = f" at {printable(self.place, _SHOWN)}" if self.place else ""
        return f"{self.rule}{where}: {printable(self.message, _SHOWN)}"

    def to_json(self) -> dict[str, str]:
        """The record as a JSON object with the four field names."""
        return {
            "rule": self.rule,
            "severity": self.severity.value,
            "place": self.place,
            "message": self.message,
        }


def bounded(findings: Iterable[Finding]) -> Iterator[Finding]:
    """The first thousand findings of each rule, so that every rule is named and a hostile file fills no memory."""
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.rule] += 1
        if counts[finding.rule] <= FINDINGS:
            yield finding
