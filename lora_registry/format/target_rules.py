"""One target of a document against the rules, field by field; what its fields say together is in ``shape_rules``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import chain, islice

from lora_registry.adapter import LAYOUTS, LOW_RANK, SCALED, Json, Kind
from lora_registry.dtypes import DTYPES
from lora_registry.findings import FINDINGS, Finding
from lora_registry.format.canonical import is_integers
from lora_registry.format.description_rules import is_digest
from lora_registry.format.limits import AXES, AXIS_LENGTH
from lora_registry.format.shape_rules import TensorSpec, check_shapes

_FACTORS = frozenset({"A", "B"})

REQUIRED: Mapping[Kind, tuple[frozenset[str], ...]] = {
    **dict.fromkeys(LOW_RANK, (_FACTORS,)),
    Kind.BIAS: (frozenset({"delta"}),),
    Kind.FULL: (frozenset({"value"}),),
    Kind.TOKENS: (frozenset({"value"}),),
    Kind.LOHA: (frozenset({"A1", "B1", "A2", "B2"}),),
    Kind.LOKR: tuple(
        frozenset({*first, *second}) for first in (("C1",), ("A1", "B1")) for second in (("C2",), ("A2", "B2"))
    ),
    Kind.SPARSE: (frozenset({"index", "delta"}),),
}
"""The roles that a target of a kind has, one set for each way of writing it (rule R-026)."""

_BESIDE = frozenset({"magnitude", "value"})

OPTIONAL: Mapping[Kind, frozenset[str]] = {
    Kind.LINEAR: _BESIDE,
    Kind.EMBEDDING: _BESIDE,
    Kind.CONV: _BESIDE,
    Kind.EXPERTS: frozenset({"value"}),
    Kind.LOHA: _BESIDE,
    Kind.LOKR: _BESIDE,
}
"""The roles that it may have besides (rule R-026)."""

ROLES: tuple[str, ...] = ("A", "B", "A1", "B1", "A2", "B2", "C1", "C2", "magnitude", "delta", "index", "value")
"""Every role of every kind."""

SEGMENTED: frozenset[Kind] = frozenset({Kind.LINEAR, Kind.EXPERTS, Kind.BIAS, Kind.LOHA, Kind.LOKR})
"""The kinds whose outputs may have segments (rule R-042)."""

_BELONGING: tuple[tuple[str, frozenset[Kind], str], ...] = (
    ("groups", frozenset({Kind.CONV}), "R-032"),
    ("rows", frozenset({Kind.TOKENS}), "R-033"),
    ("segments", SEGMENTED, "R-042"),
    ("initial", LOW_RANK, "R-043"),
    ("length", frozenset({Kind.TOKENS}), "R-044"),
)
"""Fields that mean something for some kinds only, and the rule that says so."""


def check_target(place: str, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    """Everything that one target breaks, R-022 to R-036 and R-042 to R-044.

    Args:
        place: where the target stands, for the findings.
        target: its record in the document.
        tensors: role to dtype and shape, of those roles that the file holds.
    """
    try:
        kind = Kind(str(target.get("kind")))
    except ValueError:
        yield Finding("R-022", f"{place}/kind", f"unknown kind {target.get('kind')!r}")
        return
    parts = (
        _layout(place, kind, target),
        _scale(place, kind, target),
        _roles(place, kind, target, tensors),
        _belonging(place, kind, target),
    )
    found = list(islice(chain.from_iterable(parts), FINDINGS))  # a hostile target has a million
    if "fingerprint" in target and not is_digest(target["fingerprint"]):
        found.append(Finding("R-036", f"{place}/fingerprint", "is no sha256 digest"))
    yield from found or check_shapes(place, kind, target, tensors)


def _layout(place: str, kind: Kind, target: Mapping[str, Json]) -> Iterator[Finding]:
    layout = target.get("layout", [])
    if not isinstance(layout, list) or tuple(map(str, layout)) not in LAYOUTS[kind]:
        known = " or ".join("[" + ", ".join(names) + "]" for names in sorted(LAYOUTS[kind]))
        yield Finding("R-023", f"{place}/layout", f"{layout!r} is no layout of {kind}: {known}")
        return
    if "shape" not in target and kind is Kind.TOKENS:
        return
    shape = target.get("shape")
    if not is_integers(shape) or not all(0 < axis <= AXIS_LENGTH for axis in shape):
        yield Finding("R-024", f"{place}/shape", "is no list of positive lengths")
    elif len(shape) > AXES or (len(shape) != len(layout) and () not in LAYOUTS[kind]):
        yield Finding("R-024", f"{place}/shape", f"has {len(shape)} axes, the layout {len(layout)}")


def _scale(place: str, kind: Kind, target: Mapping[str, Json]) -> Iterator[Finding]:
    scale = target.get("scale")
    if kind not in SCALED:
        if "scale" in target:
            yield Finding("R-025", f"{place}/scale", f"a {kind} target has no change to scale")
    elif not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        yield Finding("R-025", f"{place}/scale", f"{scale!r} is no finite number")


def _roles(place: str, kind: Kind, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    stated = target.get("tensors")
    if not isinstance(stated, dict):
        yield Finding("R-026", f"{place}/tensors", "is no object")
        return
    names = set(stated)
    # What is closest to what stands there is what was meant: the fewest roles too many, then too few.
    required = min(REQUIRED[kind], key=lambda roles: (len(names - roles), len(roles - names)))
    known = required | OPTIONAL.get(kind, frozenset())
    for role in sorted(required - names):
        yield Finding("R-026", f"{place}/tensors", f"a {kind} target needs {role}")
    for role in sorted(names - known):
        yield Finding("R-026", f"{place}/tensors/{role}", f"a {kind} target has no {role} here")
    for role, digest in stated.items():
        if role not in known:
            continue
        if not is_digest(digest):
            yield Finding("R-034", f"{place}/tensors/{role}", "is no sha256 digest")
        if role not in tensors:
            yield Finding("R-027", f"{place}/tensors/{role}", "is not in the file")
        elif wanted := _other_element_type(kind, role, tensors[role][0]):
            yield Finding("R-028", f"{place}/tensors/{role}", f"{tensors[role][0]} is not {wanted}")


def _other_element_type(kind: Kind, role: str, dtype: str) -> str | None:
    """What R-028 wants instead of ``dtype``; None where it has nothing against it."""
    if role == "index":
        return None if dtype == "I64" else "I64"
    return None if kind in (Kind.FULL, Kind.TOKENS) or DTYPES[dtype].floating else "floating point"


def _belonging(place: str, kind: Kind, target: Mapping[str, Json]) -> Iterator[Finding]:
    """Fields that belong to some kinds only, on a target of another."""
    for field, kinds, rule in _BELONGING:
        if field in target and kind not in kinds:
            yield Finding(rule, f"{place}/{field}", f"means nothing for {kind}")
