"""The fields of one target and the shapes of its tensors, held against each other."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import TypeAlias, cast

from lora_registry.adapter import LOW_RANK, Json, Kind
from lora_registry.findings import Finding
from lora_registry.format.canonical import is_integers
from lora_registry.format.limits import AXIS_LENGTH
from lora_registry.format.segment_rules import check_segments

Shape: TypeAlias = tuple[int, ...]

TensorSpec: TypeAlias = tuple[str, Shape]
"""dtype and shape of a tensor."""

_WITH_OUTPUTS = LOW_RANK | {Kind.BIAS, Kind.LOHA, Kind.LOKR}


def check_shapes(
    place: str, kind: Kind, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]
) -> Iterator[Finding]:
    """R-029 to R-033 and R-042 to R-044.

    Args:
        place: where the target stands, for the findings.
        kind: of the target.
        target: its record, in which no field is wrong by itself.
        tensors: role to dtype and shape; all that the kind requires.
    """
    match kind:
        case Kind.TOKENS:
            yield from _rows(place, target, tensors)
        case Kind.SPARSE:
            yield from _elements(place, tensors)
        case _:
            yield from _whole(place, target, tensors)
    if kind in _WITH_OUTPUTS:
        yield from _outputs(place, target, tensors)
    if kind in LOW_RANK:
        yield from _factors(place, kind, target, tensors)
    elif kind in (Kind.LOHA, Kind.LOKR):
        yield from _composed(place, kind, target, tensors)


def _shape(target: Mapping[str, Json]) -> Shape:
    return tuple(cast("list[int]", target["shape"]))


def _axis(target: Mapping[str, Json], name: str) -> int:
    """Length of the axis called ``name`` of the base tensor."""
    return _shape(target)[cast("list[str]", target["layout"]).index(name)]


def _whole(place: str, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    yield from _unlike("R-031", place, dict.fromkeys(("value", "delta"), _shape(target)), tensors)


def _outputs(place: str, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    out = _axis(target, "out")
    if "segments" in target:
        yield from check_segments(f"{place}/segments", target["segments"], out)
    yield from _unlike("R-030", place, {"magnitude": (out,)}, tensors)


def _elements(place: str, tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    count = tensors["index"][1]
    if len(count) != 1 or tensors["delta"][1] != count:
        yield Finding("R-031", f"{place}/tensors/delta", "index and delta are not two lists of one length")


def _factors(
    place: str, kind: Kind, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]
) -> Iterator[Finding]:
    """R-029, R-032 and R-043: the shapes that A and B must have, given the base tensor's and the rank."""
    a = tensors["A"][1]
    out, inner = _axis(target, "out"), _axis(target, "in")
    rank = a[1 if kind is Kind.EXPERTS else 0] if len(a) > 1 else 0
    wanted: dict[str, Shape] = {"A": (rank, inner), "B": (out, rank)}
    if kind is Kind.EXPERTS:
        experts = _axis(target, "expert")
        wanted = {"A": (experts, rank, inner), "B": (experts, out, rank)}
    elif kind is Kind.CONV:
        groups = target.get("groups", 1)
        if type(groups) is not int or groups < 1 or rank % groups or out % groups:
            yield Finding("R-032", f"{place}/groups", f"{groups!r} does not divide rank {rank} and {out} outputs")
            return
        kernel = _shape(target)[2:]
        wanted = {"A": (rank, inner * groups, *kernel), "B": (out, rank // groups, *(1 for _ in kernel))}
    broken = list(_unlike("R-029", place, wanted, tensors))
    yield from broken
    if not broken and "initial" in target:
        initial = target["initial"]
        if type(initial) is not int or not 0 < initial < rank:
            yield Finding("R-043", f"{place}/initial", f"{initial!r} counts none of the {rank} ranks, or all")


def _composed(
    place: str, kind: Kind, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]
) -> Iterator[Finding]:
    """R-029 for the kinds that are composed of two products (spec/extensions.md)."""
    out, inner, kernel = _axis(target, "out"), _axis(target, "in"), _shape(target)[2:]
    sides = dict.fromkeys("12", (out, inner))
    if kind is Kind.LOKR:
        sides = {number: _side(number, tensors) for number in "12"}
        (o1, i1), (o2, i2) = sides["1"], sides["2"]
        if o1 * o2 != out or i1 * i2 != inner:
            message = f"a Kronecker product of ({o1}, {i1}) and ({o2}, {i2}) is not ({out}, {inner})"
            yield Finding("R-029", f"{place}/tensors", message)
            return
    for number, (rows, columns) in sides.items():
        axes = kernel if kind is Kind.LOHA or number == "2" else ()
        a = tensors.get(f"A{number}")
        rank = a[1][0] if a is not None and a[1] else 0
        wanted = {
            f"A{number}": (rank, columns, *axes),
            f"B{number}": (rows, rank),
            f"C{number}": (rows, columns, *axes),
        }
        yield from _unlike("R-029", place, wanted, tensors)


def _side(number: str, tensors: Mapping[str, TensorSpec]) -> tuple[int, int]:
    """Outputs and inputs of one side of a Kronecker product, 0 where the tensors have too few axes."""
    rows = tensors.get(f"C{number}") or tensors[f"B{number}"]
    columns = tensors.get(f"C{number}") or tensors[f"A{number}"]
    return (rows[1][0] if rows[1] else 0), (columns[1][1] if len(columns[1]) > 1 else 0)


def _unlike(rule: str, place: str, wanted: Mapping[str, Shape], tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    """The tensors that are there and have another shape than is wanted."""
    for role, shape in wanted.items():
        if role in tensors and tensors[role][1] != shape:
            yield Finding(rule, f"{place}/tensors/{role}", f"has shape {list(tensors[role][1])}, not {list(shape)}")


def _rows(place: str, target: Mapping[str, Json], tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    """R-031, R-033 and R-044: rows are those of the base tensor, or all that are added to it."""
    rows = target.get("rows")
    if not is_integers(rows) or not rows or min(rows) < 0:
        yield Finding("R-033", f"{place}/rows", "is no list of row numbers")
        return
    ascending = rows == sorted(set(rows))
    if not ascending:
        yield Finding("R-033", f"{place}/rows", "is not ascending, or names a row twice")
    shape = _shape(target) if "shape" in target else None
    stop = None if shape is None else shape[0]
    if "length" in target:
        length = target["length"]
        if type(length) is not int or stop is None or not stop < length <= AXIS_LENGTH:
            yield Finding("R-044", f"{place}/length", f"{length!r} adds no rows to those of the base tensor")
            return
        if ascending and not _has_all(rows, stop, length):
            yield Finding("R-044", f"{place}/rows", f"lacks some of the added rows {stop} to {length - 1}")
            return
        stop = length
    if stop is not None and max(rows) >= stop:
        yield Finding("R-033", f"{place}/rows", f"row {max(rows)} is beyond the {stop} rows of the tensor")
    value = tensors["value"][1]
    width = shape[1] if shape is not None else (value[1] if len(value) == 2 else 0)
    yield from _unlike("R-031", place, {"value": (len(rows), width)}, tensors)


def _has_all(rows: list[int], start: int, stop: int) -> bool:
    """Whether ascending ``rows`` have each from ``start`` to below ``stop``, which a stranger may set to 2**40."""
    last = bisect_left(rows, start) + stop - start - 1
    return last < len(rows) and rows[last] == stop - 1
