"""What comparing the adapter with a base model said: rules A-040 to A-042.

The comparison itself is :func:`lora_registry.merge.fit.fit`. The audit does not open base models: ``audit``
and ``merge`` are siblings, so the caller compares and passes the result in as data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from lora_registry.adapter import Adapter
from lora_registry.audit.rules import found
from lora_registry.findings import Finding


class FitResult(Protocol):
    """What the audit needs to know; :class:`lora_registry.merge.fit.Fit` has it."""

    @property
    def verdict(self) -> str:
        """``exact``: every target found its tensor, and every fingerprint agrees; ``same-shapes``: every
        target found its tensor, and the fingerprints differ or are missing; ``does-not-fit`` otherwise.
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


def check_fit(adapter: Adapter, fit: FitResult) -> Iterator[Finding]:
    """A-040 to A-042, and the findings of the comparison as they are.

    Raises:
        ValueError: the verdict is none of the three.
    """
    yield from fit.findings
    with_fingerprint = sum(target.fingerprint is not None for target in adapter)
    match fit.verdict:
        case "exact":
            return
        case "same-shapes" if with_fingerprint:
            yield found(
                "A-041", "base", f"of {len(adapter)} targets {with_fingerprint} carry a fingerprint; not all agree"
            )
        case "same-shapes":
            yield found("A-042", "base", "the shapes fit, and no target carries a fingerprint")
        case "does-not-fit":
            yield found("A-040", "base", f"{len(fit.matches)} of {len(adapter)} targets find their tensor")
        case other:
            raise ValueError(f"{other!r} is no verdict of a fit")
