"""What the numbers of the targets say: rules A-001 to A-009."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from math import exp, isinf, log

import numpy as np

from lora_registry.adapter import SCALED, Kind
from lora_registry.audit.measure import Measure
from lora_registry.audit.report import Checked, Skipped
from lora_registry.audit.rules import found
from lora_registry.findings import Finding
from lora_registry.text import listed, plural, printable

FAMILY = 16
"""Targets that a family needs before one of them can stand out; the same number as adaptersentry 2.0.2."""
OUTLIER_Z = 6.0
"""Robust z score of ln ‖ΔW‖ beyond which a change stands out; chosen by us, not calibrated on a corpus."""
OUTLIER_RATIO = 3.0
"""A change stands out only where it is this many times the median or the inverse, however alike the others are."""

_STARTS_AT_ZERO = frozenset({"B", "B1", "B2", "A2", "C1", "C2", "delta"})
"""Roles of which trainers start one at zero: B of LoRA; of LoHa and LoKr, one of the second product or of the sides."""

_NUMBER = re.compile(r"\d+")
_MAD_TO_SIGMA = 1.4826  # of a normal distribution


def check_tensors(measures: Sequence[Measure], *, complete: bool = True) -> Iterator[Finding]:
    """A-001 to A-009 on the measured targets.

    Args:
        measures: the targets, measured.
        complete: whether these are all targets of the adapter; only then can A-002 be decided.
    """
    yield from _nonfinite(measures)
    if complete and measures and all(measure.dead for measure in measures):
        yield _nothing(measures)
    else:
        for measure in measures:
            yield from _zeros(measure)
    yield from _ranks(measures)
    for name, members in families(measures).items():
        if len(members) >= FAMILY:
            yield from _outliers(name, members)
    yield from _copies(measures)
    yield from _dtypes(measures)


def describe(measures: Sequence[Measure]) -> tuple[list[Checked], list[Skipped]]:
    """What was measured, and what the rules above could not judge."""
    elements = sum(scan.elements for measure in measures for scan in measure.scans.values())
    changes = sum(len(measure.spectra) for measure in measures)
    sizes = {name: len(members) for name, members in families(measures).items()}
    checked = [
        Checked("elements", elements, "each looked at for NaN, infinity and zero"),
        Checked("changes", changes, "norm and rank from the factors, in float64"),
        Checked("families", sum(size >= FAMILY for size in sizes.values()), "norms compared, by module name"),
    ]
    skipped = []
    for what, blind in _blind(measures).items():
        if blind:
            skipped.append(Skipped("norm and rank", f"{what} {plural(blind, 'target')}"))
    small = sum(size < FAMILY for size in sizes.values())
    if small:
        skipped.append(
            Skipped("outlier norms", f"fewer than {FAMILY} members to compare with in {plural(small, 'family')}")
        )
    based = sum(bool({"magnitude", "value"} & set(measure.scans)) for measure in measures)
    if based:
        why = f"depends on the base's weights where there is a magnitude or a value: {plural(based, 'target')}"
        skipped.append(Skipped("size of the change", why))
    return checked, skipped


def _blind(measures: Sequence[Measure]) -> dict[str, int]:
    """Why the changes of some targets were not measured, to how many they are."""
    unmeasured = [measure for measure in measures if measure.factors and not measure.spectra]
    broken = sum(any(measure.scans[role].nonfinite for role in measure.factors) for measure in unmeasured)
    return {
        "not finite: the factors of": broken,
        "too many factors to look at together: LoHa or LoKr of": len(unmeasured) - broken,
        "no factors: the sparse change of": sum(measure.target.kind is Kind.SPARSE for measure in measures),
    }


def families(measures: Sequence[Measure]) -> dict[str, list[Measure]]:
    """Targets with a finite change that is not zero, by their name with every number as ``*``."""
    grouped: dict[str, list[Measure]] = defaultdict(list)
    for measure in measures:
        if measure.norm and not isinf(measure.norm):
            grouped[_NUMBER.sub("*", measure.target.name)].append(measure)
    return dict(grouped)


def _place(measure: Measure) -> str:
    return f"targets/{printable(measure.target.name, 256)}"


def _nonfinite(measures: Sequence[Measure]) -> Iterator[Finding]:
    for measure in measures:
        for role, scan in measure.scans.items():
            if scan.nonfinite:
                message = f"{scan.nonfinite} of {scan.elements} elements are NaN or infinite"
                yield found("A-001", f"{_place(measure)}/tensors/{role}", message)
        if measure.norm is not None and isinf(measure.norm):
            yield found("A-001", _place(measure), "the change overflows float64")


def _nothing(measures: Sequence[Measure]) -> Finding:
    """A-002, with the reasons that A-003 to A-005 would give target by target."""
    reasons = Counter(finding.rule for measure in measures for finding in _zeros(measure))
    words = {"A-003": "B, C or delta", "A-004": "A", "A-005": "the scale"}
    why = [f"{words[rule]} is zero in {count}" for rule, count in sorted(reasons.items())]
    message = (
        f"{plural(len(measures), 'target')}, and all leave the base as it is: {', '.join(why) or 'the product is zero'}"
    )
    return found("A-002", "targets", message)


def _zeros(measure: Measure) -> Iterator[Finding]:
    """A-003 to A-005: the reasons for which a target does nothing, each by itself."""
    target = measure.target
    for role in sorted(measure.scans.keys() & {*measure.factors, "delta"}, reverse=True):
        if measure.scans[role].zero:
            rule = "A-003" if role in _STARTS_AT_ZERO else "A-004"
            yield found(rule, f"{_place(measure)}/tensors/{role}", "is all zero")
    if target.scale == 0.0 and target.kind in SCALED:
        yield found("A-005", f"{_place(measure)}/scale", "is zero")


def _explained(measure: Measure) -> bool:
    """Whether a rank of zero is said already by A-003 to A-005."""
    return measure.target.scale == 0.0 or any(measure.scans[role].zero for role in measure.factors)


def _ranks(measures: Sequence[Measure]) -> Iterator[Finding]:
    """A-006, once for the adapter: a rank chosen too high shows in most targets at once."""
    deficient = []
    for measure in measures:
        if not _explained(measure):
            low = [spectrum for spectrum in measure.spectra if spectrum.rank < spectrum.limit]
            if low:
                worst = min(low, key=lambda spectrum: spectrum.rank / spectrum.limit)
                experts = f" ({len(low)} of {len(measure.spectra)} experts)" if len(measure.spectra) > 1 else ""
                text = f"{worst.rank} of {worst.limit} in {measure.target.name}{experts}"
                deficient.append((worst.rank / worst.limit, text))
    if deficient:
        total = sum(bool(measure.spectra) for measure in measures)
        worst_first = [text for _, text in sorted(deficient)]
        message = f"{len(deficient)} of {total} changes use less than their rank, worst first: {listed(worst_first)}"
        yield found("A-006", "targets", message)


def _outliers(name: str, members: Sequence[Measure]) -> Iterator[Finding]:
    """A-007, by the median and the median absolute deviation of ln ‖ΔW‖, which outliers do not move."""
    logs = np.array([log(measure.norm) for measure in members if measure.norm])
    median = float(np.median(logs))
    spread = _MAD_TO_SIGMA * float(np.median(np.abs(logs - median)))
    for measure, value in zip(members, logs.tolist(), strict=True):
        distance = abs(value - median)
        if distance > OUTLIER_Z * spread and distance > log(OUTLIER_RATIO):
            factor = f"{exp(min(distance, 700.0)):.3g} times {'above' if value > median else 'below'} the median"
            message = f"‖ΔW‖ = {exp(value):.3g} is {factor} of the {len(members)} {printable(name, 80)}"
            yield found("A-007", _place(measure), message)


def _copies(measures: Sequence[Measure]) -> Iterator[Finding]:
    """A-008: equal B first, and the others only where B agrees, so that most tensors are hashed at most once."""
    by_first = defaultdict(list)
    for measure in measures:
        if measure.norm:
            first = measure.target.digest(measure.factors[0])
            by_first[measure.target.shape, measure.factors, first].append(measure.target)
    for (_, roles, _), alike in by_first.items():
        by_others = defaultdict(list)
        for target in alike if len(alike) > 1 else ():
            by_others[tuple(target.digest(role) for role in roles[1:])].append(target.name)
        for names in by_others.values():
            if len(names) > 1:
                same = " and ".join(reversed(roles))
                yield found("A-008", f"targets/{printable(names[0], 256)}", f"same {same} as {listed(names[1:])}")


def _dtypes(measures: Sequence[Measure]) -> Iterator[Finding]:
    counts = Counter(measure.target.tensors[role].dtype for measure in measures for role in measure.factors)
    if len(counts) > 1:
        parts = ", ".join(f"{count} {dtype}" for dtype, count in counts.most_common())
        yield found("A-009", "targets", f"the factors are {parts}")
