"""One target of a document against the rules: its fields, its tensors, and their shapes."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import TypeAlias

from lora_registry.adapter import LAYOUTS, LOW_RANK, SCALED, Json, Kind
from lora_registry.dtypes import DTYPES
from lora_registry.findings import Finding, bounded
from lora_registry.format.canonical import is_integers
from lora_registry.format.description_rules import is_digest
from lora_registry.format.limits import AXES, AXIS_LENGTH
from lora_registry.format.segment_rules import check_segments

Spec: TypeAlias = tuple[str, tuple[int, ...]]
"""dtype and shape of a tensor."""

Shape: TypeAlias = tuple[int, ...]

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


def check_target(place: str, target: Mapping[str, Json], tensors: Mapping[str, Spec]) -> Iterator[Finding]:
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
    found = list(bounded(chain.from_iterable(parts)))
    if "fingerprint" in target and not is_digest(target["fingerprint"]):
        found.append(Finding("R-036", f"{place}/fingerprint", "is no sha256 digest"))
    yield from found
    if found:  # shapes are held against each other only where the record is sound field by field
        return
    shape = target.get("shape")
    if kind is Kind.TOKENS:
        yield from _rows(place, target, tuple(shape) if is_integers(shape) else None, tensors["value"][1])
    elif is_integers(shape):
        yield from _shapes(place, kind, target, tuple(shape), tensors)


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


def _roles(place: str, kind: Kind, target: Mapping[str, Json], tensors: Mapping[str, Spec]) -> Iterator[Finding]:
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


def _shapes(
    place: str, kind: Kind, target: Mapping[str, Json], shape: Shape, tensors: Mapping[str, Spec]
) -> Iterator[Finding]:
    """Shapes against each other; the record is sound field by field when this runs."""
    if kind is Kind.SPARSE:
        count = tensors["index"][1]
        if len(count) != 1 or tensors["delta"][1] != count:
            yield Finding("R-031", f"{place}/tensors/delta", "index and delta are not two lists of one length")
        return
    for role in ("value", "delta"):
        if role in tensors and tensors[role][1] != shape:
            yield Finding("R-031", f"{place}/tensors/{role}", f"has shape {list(tensors[role][1])}, not {list(shape)}")
    if kind is Kind.FULL:
        return
    out = shape[_axis(target, "out")]
    if "segments" in target:
        yield from check_segments(f"{place}/segments", target["segments"], out)
    if kind is Kind.BIAS:
        return
    if kind in LOW_RANK:
        yield from _factors(place, kind, target, shape, tensors)
    else:
        yield from _composed(place, kind, shape, _axis(target, "out"), tensors)
    if "magnitude" in tensors and tensors["magnitude"][1] != (out,):
        yield Finding("R-030", f"{place}/tensors/magnitude", f"has shape {list(tensors['magnitude'][1])}, not [{out}]")


def _axis(target: Mapping[str, Json], name: str) -> int:
    layout = target["layout"]
    assert isinstance(layout, list)
    return layout.index(name)


def _factors(
    place: str, kind: Kind, target: Mapping[str, Json], shape: Shape, tensors: Mapping[str, Spec]
) -> Iterator[Finding]:
    """R-029, R-032 and R-043: the shapes that A and B must have, given the base tensor's and the rank."""
    a = tensors["A"][1]
    out, inner = shape[_axis(target, "out")], shape[_axis(target, "in")]
    rank = a[1 if kind is Kind.EXPERTS else 0] if len(a) > 1 else 0
    wanted_a: Shape = (rank, inner)
    wanted_b: Shape = (out, rank)
    if kind is Kind.EXPERTS:
        experts = shape[_axis(target, "expert")]
        wanted_a, wanted_b = (experts, rank, inner), (experts, out, rank)
    elif kind is Kind.CONV:
        groups = target.get("groups", 1)
        if type(groups) is not int or groups < 1 or rank % groups or out % groups:
            yield Finding("R-032", f"{place}/groups", f"{groups!r} does not divide rank {rank} and {out} outputs")
            return
        kernel = shape[2:]
        wanted_a = (rank, inner * groups, *kernel)
        wanted_b = (out, rank // groups, *(1 for _ in kernel))
    broken = list(_unlike(place, {"A": wanted_a, "B": wanted_b}, tensors))
    yield from broken
    initial = target.get("initial", 1)
    if not broken and "initial" in target and (type(initial) is not int or not 0 < initial < rank):
        yield Finding("R-043", f"{place}/initial", f"{initial!r} counts none of the {rank} ranks, or all")


def _composed(place: str, kind: Kind, shape: Shape, out_axis: int, tensors: Mapping[str, Spec]) -> Iterator[Finding]:
    """R-029 for the kinds that are composed of two products (spec/extensions.md)."""
    out, inner, kernel = shape[out_axis], shape[1 - out_axis], shape[2:]
    sides = {number: _side(number, tensors) for number in "12"}
    if kind is Kind.LOKR:
        (o1, i1), (o2, i2) = sides["1"], sides["2"]
        if o1 * o2 != out or i1 * i2 != inner:
            message = f"a Kronecker product of ({o1}, {i1}) and ({o2}, {i2}) is not ({out}, {inner})"
            yield Finding("R-029", f"{place}/tensors", message)
            return
    else:
        sides = dict.fromkeys("12", (out, inner))
    for number, (rows, columns) in sides.items():
        axes = kernel if kind is Kind.LOHA or number == "2" else ()
        a = tensors.get(f"A{number}")
        rank = a[1][0] if a is not None and a[1] else 0
        wanted = {
            f"A{number}": (rank, columns, *axes),
            f"B{number}": (rows, rank),
            f"C{number}": (rows, columns, *axes),
        }
        yield from _unlike(place, wanted, tensors)


def _side(number: str, tensors: Mapping[str, Spec]) -> tuple[int, int]:
    """Outputs and inputs of one side of a Kronecker product, 0 where the tensors have too few axes."""
    rows = tensors.get(f"C{number}") or tensors[f"B{number}"]
    columns = tensors.get(f"C{number}") or tensors[f"A{number}"]
    return (rows[1][0] if rows[1] else 0), (columns[1][1] if len(columns[1]) > 1 else 0)


def _unlike(place: str, wanted: Mapping[str, Shape], tensors: Mapping[str, Spec]) -> Iterator[Finding]:
    for role, shape in wanted.items():
        if role in tensors and tensors[role][1] != shape:
            yield Finding("R-029", f"{place}/tensors/{role}", f"has shape {list(tensors[role][1])}, not {list(shape)}")


def _rows(place: str, target: Mapping[str, Json], shape: Shape | None, value: Shape) -> Iterator[Finding]:
    rows = target.get("rows")
    if not is_integers(rows) or not rows or min(rows) < 0:
        yield Finding("R-033", f"{place}/rows", "is no list of row numbers")
        return
    if rows != sorted(set(rows)):
        yield Finding("R-033", f"{place}/rows", "is not ascending, or names a row twice")
    stop = shape[0] if shape is not None else None
    if "length" in target:
        length = target["length"]
        if type(length) is not int or stop is None or not stop < length <= AXIS_LENGTH:
            yield Finding("R-044", f"{place}/length", f"{length!r} adds no rows to those of the base tensor")
            return
        added = length - stop  # a stranger's number: a list of so many rows need not fit in memory
        first = bisect_left(rows, stop)
        complete = len(rows) >= first + added and (rows[first], rows[first + added - 1]) == (stop, length - 1)
        if not complete and rows == sorted(set(rows)):
            yield Finding("R-044", f"{place}/rows", f"lacks some of the added rows {stop} to {length - 1}")
            return
        stop = length
    if stop is not None and max(rows) >= stop:
        yield Finding("R-033", f"{place}/rows", f"row {max(rows)} is beyond the {stop} rows of the tensor")
    wanted = (len(rows), shape[1] if shape is not None else (value[1] if len(value) == 2 else 0))
    if value != wanted:
        yield Finding("R-031", f"{place}/tensors/value", f"has shape {list(value)}, not {list(wanted)}")
