"""Problems of a PEFT folder as findings, and the error that carries them."""

from __future__ import annotations

from collections.abc import Sequence

from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.findings import Finding

BROKEN = "peft-broken"
"""The files contradict each other or PEFT's format."""

UNSUPPORTED = "peft-unsupported"
"""The files are sound, but say what an adapter cannot hold, or leave open what must be known."""


def broken(place: str, message: str) -> Finding:
    """A finding that the files are wrong."""
    return Finding(BROKEN, place, message)


def unsupported(place: str, message: str) -> Finding:
    """A finding that the files cannot be carried, or decided."""
    return Finding(UNSUPPORTED, place, message)


def refuse(what: str, findings: Sequence[Finding]) -> None:
    """Raise the error that ``findings`` call for; return where there are none.

    Raises:
        UnsupportedError: every finding is one of what cannot be carried.
        InvalidInputError: a file is broken.
    """
    if not findings:
        return
    kind = UnsupportedError if all(finding.rule == UNSUPPORTED for finding in findings) else InvalidInputError
    raise kind.from_findings(what, findings)
