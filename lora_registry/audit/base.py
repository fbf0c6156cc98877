"""What comparing the adapter with a base model said: rules A-040 to A-042.

The comparison itself is :func:`lora_registry.merge.fitting.fit.fit`. The audit does not open base models: ``audit``
and ``merge`` are siblings, so the caller compares and passes the result in as data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from lora_registry.adapter import Adapter
from lora_registry.audit.rules import found
from lora_registry.findings import Finding


class FitResult(Protocol):
    """What the audit needs to know; :class:`lora_registry.merge.fitting.fit.Fit` has it."""

    @property
    def verdict(self) -> str:
        """``exact``: every fingerprint is that of its tensor; ``same-shapes``: everything has its place, and
        weights differ (M-004) or are not known to agree (M-005); ``does-not-fit``: something has no place.
        """
        ...

    @property
    def matches(self) -> Mapping[str, str]:
        """Name of each target that found its tensor, to the name of that tensor."""
        ...

    @property
    def findings(self) -> Sequence[Finding]:
        """What does not fit, target by target, with the ids of whoever compared."""
        ...


_OTHER_WEIGHTS, _NO_FINGERPRINT = "M-004", "M-005"
"""The two rules of the comparison that tell why the shapes fit and the weights are not known to."""


def check_fit(adapter: Adapter, fit: FitResult) -> Iterator[Finding]:
    """A-040 to A-042, and the findings of the comparison as they are.

    M-005 is the one that is left out: A-042 says the same, with the same words.

    Raises:
        ValueError: the verdict is none of the three.
    """
    if fit.verdict not in ("exact", "same-shapes", "does-not-fit"):
        raise ValueError(f"{fit.verdict!r} is no verdict of a fit")
    yield from (finding for finding in fit.findings if finding.rule != _NO_FINGERPRINT)
    if fit.verdict == "does-not-fit":
        message = (
            f"{len(fit.matches)} of {len(adapter)} targets find their tensor; the other findings say what does not fit"
        )
        yield found("A-040", "base", message)
        return
    other = sum(finding.rule == _OTHER_WEIGHTS for finding in fit.findings)
    if other:
        yield found("A-041", "base", f"{other} of {len(adapter)} targets were made for other weights")
    for finding in fit.findings:
        if finding.rule == _NO_FINGERPRINT:
            yield found("A-042", "base", finding.message)
