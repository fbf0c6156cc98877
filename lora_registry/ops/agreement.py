"""Whether two adapters make the same change, by their probe certificates (spec section 11.1).

Certificates say nothing of what is no number of a matrix: the gate, and the rows that a tokens target replaces.
Two adapters are the same only if those are equal too, so they are compared beside the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf, sqrt

from lora_registry.adapter import Adapter, Target
from lora_registry.ops.prefix import Prefix, uniform_prefix
from lora_registry.ops.probe import Certificate, Probe

TOLERANCE = 1e-6
"""The usual t: below the rounding of float32 factors that were scaled, above that of the arithmetic."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which two adapters differ.

    Attributes:
        target: name of the base tensor; empty for what concerns the whole adapter.
        component: ``change``, ``magnitude``, ``value``, ``rows``, ``length`` or ``gate``.
        relative: the largest |p - q| over the larger root mean square; None where there is no such figure.
        reason: what is different, in a few words.
    """

    target: str
    component: str
    relative: float | None
    reason: str

    def to_json(self) -> dict[str, str | float | None]:
        """The record as a JSON object with the four field names."""
        return {
            "target": self.target,
            "component": self.component,
            "relative": self.relative,
            "reason": self.reason,
        }


def agree(one: Certificate, other: Certificate, tolerance: float = TOLERANCE) -> list[Difference]:
    """Where two certificates do not agree within ``tolerance``; names that only one has first, then the worst.

    Args:
        one: a certificate.
        other: another, with the same names for the same base tensors.
        tolerance: t of section 11.1; whoever shows the result states it (P-052).
    """
    found = []
    for name in sorted({*one.targets, *other.targets}):
        if name not in one.targets or name not in other.targets:
            found.append(Difference(name, "", None, f"only the {_whose(name, one.targets)} changes it"))
        else:
            found += _between(name, one.targets[name], other.targets[name], tolerance)
    return sorted(found, key=lambda difference: -_size(difference))


def _between(name: str, one: Mapping[str, Probe], other: Mapping[str, Probe], tolerance: float) -> list[Difference]:
    found = []
    for component in sorted({*one, *other}):
        if component not in one or component not in other:
            found.append(Difference(name, component, None, f"only the {_whose(component, one)} has it"))
            continue
        apart = relative_difference(one[component], other[component])
        if not apart <= tolerance and not _within_rounding(one[component], other[component]):
            found.append(Difference(name, component, apart, "differs"))
    return found


def _whose(name: str, one: Mapping[str, object]) -> str:
    return "first" if name in one else "second"


def _size(difference: Difference) -> float:
    return inf if difference.relative is None else difference.relative


def relative_difference(one: Probe, other: Probe) -> float:
    """The largest |p - q| over the larger root mean square; 0 where all numbers are zero."""
    apart = max(abs(p - q) for p, q in zip(one.numbers, other.numbers, strict=True))
    size = max(_root_mean_square(probe) for probe in (one, other))
    return apart / size if size else 0.0


def _within_rounding(one: Probe, other: Probe) -> bool:
    """Whether P-051 alone explains the difference: a change that cancels to nothing is nothing."""
    least = max(one.bound, other.bound) * 2.0**-29
    return all(abs(p - q) <= least for p, q in zip(one.numbers, other.numbers, strict=True))


def _root_mean_square(probe: Probe) -> float:
    # The largest goes first, for squares of numbers beyond 1e154 are beyond float64.
    largest = max(map(abs, probe.numbers))
    if not largest:
        return 0.0
    return largest * sqrt(sum((number / largest) ** 2 for number in probe.numbers) / len(probe.numbers))


def unseen(one: Adapter, other: Adapter) -> list[Difference]:
    """Differences that no certificate shows: another gate, other rows or another length of a tokens target."""
    found = []
    if one.gate != other.gate:
        found.append(Difference("", "gate", None, "the gates are different"))
    others = {target.name: target for target in other}
    for target in one:
        if (match := others.get(target.name)) is not None:
            found += _unseen_of_target(target, match)
    return found


def _unseen_of_target(target: Target, other: Target) -> list[Difference]:
    found = []
    if target.rows != other.rows:
        found.append(Difference(target.name, "rows", None, "replaces other rows"))
    if target.length != other.length:
        found.append(Difference(target.name, "length", None, "adds another number of rows"))
    return found


def with_names_of(one: Adapter, other: Adapter) -> tuple[Adapter, Prefix]:
    """``one`` under the names of ``other``, where they differ by one prefix for all targets (P-013).

    Returns:
        The adapter to compare, and the prefix by which its names were changed; an empty prefix where they were
        not, because they agree as they are, or under no prefix.

    Raises:
        InconclusiveError: two prefixes do equally well.
    """
    names = {target.name for target in other}
    prefix = uniform_prefix((target.name for target in one), names)
    if prefix is None or prefix == Prefix():
        return one, Prefix()
    renamed = [replace(target, name=prefix.find(target.name, names) or target.name) for target in one]
    if len({target.name for target in renamed}) < len(renamed):
        return one, Prefix()
    return replace(one, targets=tuple(renamed)), prefix
