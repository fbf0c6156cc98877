"""The rows of fused tensors: taken apart, put together, and put into another order (spec section 5.5).

Bytes are copied and nothing is computed, so that all of this is exact. A permutation of the outputs is one of
the rows of B, of magnitude, delta and value; A knows nothing of outputs (P-044).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_registry.adapter import Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.segment_record import to_record
from lora_registry.format.segment_rules import check_segments
from lora_registry.ops.arrays import Array, from_array, numpy_dtype, to_array
from lora_registry.segments import Rope, Segment, Segments

_PAIRS = (("A", "B"), ("A1", "B1"), ("A2", "B2"))
_FUSIBLE = frozenset({Kind.LINEAR, Kind.EXPERTS, Kind.BIAS, Kind.LOHA})


def split(target: Target) -> dict[str, Target]:
    """The targets that change the segments of a fused tensor, each by itself.

    A is shared, and every other tensor gives the rows of the segment. The parts keep the name of the fused
    tensor, since nothing here knows how the separate ones are called, and have no fingerprint.

    Args:
        target: one with segments.

    Returns:
        Name of a segment to its target, in the order of the segments. Where a segment is rotated, the target
        says so with segments of its own.

    Raises:
        InvalidInputError: the target has no segments.
        UnsupportedError: a LoKr target, whose factors have no row for each output.
    """
    segments = _segments_of(target)
    rows = segments.rows()
    return {
        part.name: _with_rows(target, rows[part.name], None if part.rope is None else Segments((part,)))
        for part in segments.parts
    }


def reordered(target: Target, wanted: Segments) -> Target:
    """The target of the same change in a base whose outputs stand in another order.

    Args:
        target: one with segments.
        wanted: the same segments in any order, interleaved in any way, their heads in any rotary order.

    Returns:
        A target with ``wanted`` as its segments and without a fingerprint; ``target`` itself where nothing moves.

    Raises:
        InvalidInputError: the target has no segments, or others than ``wanted``.
        UnsupportedError: a LoKr target, whose factors have no row for each output.
    """
    have = _segments_of(target)
    return target if have == wanted else _with_rows(target, row_order(have, wanted), wanted)


def row_order(have: Segments, wanted: Segments) -> list[int]:
    """Where each output comes from: output i in the ``wanted`` order is output ``order[i]`` of those there are.

    Raises:
        InvalidInputError: the two do not have the same segments, or break R-042.
    """
    _check(have)
    _check(wanted)
    segments = {part.name: part for part in have.parts}
    lengths = {part.name: part.length for part in have.parts}
    if lengths != {part.name: part.length for part in wanted.parts}:
        raise InvalidInputError(f"segments {_listed(have)} cannot be put into the order of {_listed(wanted)}")
    from_rows, to_rows = have.rows(), wanted.rows()
    order = [0] * have.length
    for part in wanted.parts:
        inside = _within(segments[part.name], part)
        for row, place in enumerate(to_rows[part.name]):
            order[place] = from_rows[part.name][inside[row]]
    return order


def fused(parts: Mapping[str, Target], segments: Segments, *, name: str) -> Target:
    """The one target that changes a fused tensor as ``parts`` change its segments.

    Where all parts have one A, the B lie over each other and the rank stays; otherwise the A do, B is
    block-diagonal, and the ranks add up. A segment without a part is left as it is by rows of zeros.

    Args:
        parts: name of a segment to the target of that map by itself.
        segments: of the fused tensor. A part that has segments of its own is put into the rotary order of its
            namesake here.
        name: of the fused tensor.

    Raises:
        InvalidInputError: a part belongs to no segment, has another length, or differs from the others in kind,
            layout, inputs, element types or roles; the segments break R-042.
        UnsupportedError: LoKr targets; parts of several scales; a magnitude or a value for some segments only.
    """
    unknown = sorted(parts.keys() - {part.name for part in segments.parts})
    if unknown or not parts:
        raise InvalidInputError(f"{name}: no segment {', '.join(unknown)} in {_listed(segments)}")
    _check(segments)
    rows = segments.rows()
    given = [
        _Part(_in_order_of(part, parts[part.name]), rows[part.name]) for part in segments.parts if part.name in parts
    ]
    first = given[0].target
    _agree(name, [part.target for part in given])
    if len(given) < len(segments.parts) and {"magnitude", "value"} & first.tensors.keys():
        raise UnsupportedError(f"{name}: not every segment has a part, and a magnitude or a value needs one of each")
    shared = all(part.target.initial == first.initial for part in given)
    tensors: dict[str, Tensor] = {}
    initial = first.initial
    for a, b in _PAIRS:
        if a not in first.tensors:
            continue
        if shared and len({part.target.digest(a) for part in given}) == 1:
            tensors[a] = first.tensors[a]
            tensors[b] = _over_each_other(given, b, segments.length)
        else:
            tensors[a], tensors[b] = _diagonal(given, a, b, segments.length)
            initial = sum(part.target.initial for part in given)
    for role in [role for role in first.tensors if role not in tensors]:
        tensors[role] = _over_each_other(given, role, segments.length)
    return replace(
        first,
        name=name,
        shape=_shape(first, segments.length),
        tensors=tensors,
        segments=segments,
        initial=initial,
        fingerprint=None,
        digests={},
    )


@dataclass(frozen=True, slots=True)
class _Part:
    """A target, and the rows of the fused tensor that are its outputs."""

    target: Target
    rows: list[int]


def _segments_of(target: Target) -> Segments:
    _refuse_lokr(target)
    if target.segments is None:
        raise InvalidInputError(f"{target.name}: nothing says what its outputs are; it has no segments")
    return target.segments


def _refuse_lokr(target: Target) -> None:
    if target.kind is Kind.LOKR:
        raise UnsupportedError(f"{target.name}: the factors of a LoKr target have no row for each output")


def _check(segments: Segments) -> None:
    """Refuse segments that were made in code and break the rule of those in files (R-042)."""
    findings = list(check_segments("segments", to_record(segments), segments.length))
    if findings:
        raise InvalidInputError.from_findings(_listed(segments), findings)


def _listed(segments: Segments) -> str:
    return " + ".join(f"{part.name} {part.length}" for part in segments.parts)


def _out_axis(target: Target, role: str) -> int | None:
    """The axis of a tensor along which the outputs lie; None for A, which has none."""
    if role.startswith("A"):
        return None
    if role == "value":
        return target.layout.index("out")
    return 1 if target.kind is Kind.EXPERTS else 0


def _shape(target: Target, out: int) -> tuple[int, ...]:
    """The stored shape of ``target`` with another number of outputs."""
    assert target.shape is not None  # only tokens may leave it out
    return tuple(out if axis == "out" else length for axis, length in zip(target.layout, target.shape, strict=True))


def _with_rows(target: Target, rows: Sequence[int], segments: Segments | None) -> Target:
    """The target of the given outputs, in their order."""
    tensors: dict[str, Tensor] = {}
    digests: dict[str, Digest] = {}
    for role, tensor in target.tensors.items():
        axis = _out_axis(target, role)
        if axis is None:
            tensors[role] = tensor
            digests |= {role: target.digests[role]} if role in target.digests else {}
        else:
            tensors[role] = from_array(np.take(to_array(tensor), rows, axis))
    shape = _shape(target, len(rows))
    return replace(target, shape=shape, tensors=tensors, digests=digests, segments=segments, fingerprint=None)


def _within(have: Segment, wanted: Segment) -> list[int]:
    """Row i of the segment as it is wanted is row ``within[i]`` of the segment as it is."""
    if have.rope == wanted.rope:
        return list(range(have.length))
    if have.rope is None or wanted.rope is None or replace(have.rope, order=wanted.rope.order) != wanted.rope:
        raise InvalidInputError(f"segment {have.name}: {have.rope} cannot be put into the order of {wanted.rope}")
    place = {row: index for index, row in enumerate(_halves(have.rope))}
    head = [place[row] for row in _halves(wanted.rope)]
    return [start + row for start in range(0, have.length, have.rope.head) for row in head]


def _halves(rope: Rope) -> Iterator[int]:
    """For each row of a head as it is stored, which row it would be in the order ``halves``."""
    for row in range(rope.head):
        paired = rope.order == "pairs" and row < rope.rotary
        yield row // 2 + row % 2 * (rope.rotary // 2) if paired else row


def _in_order_of(segment: Segment, part: Target) -> Target:
    """The part with its rows in the order of ``segment``, if it says in which they are."""
    _refuse_lokr(part)
    if part.kind not in _FUSIBLE or part.shape is None:
        raise InvalidInputError(f"{part.name}: a {part.kind} target is no part of a fused tensor")
    if part.shape[part.layout.index("out")] != segment.length:
        raise InvalidInputError(f"{part.name}: {list(part.shape)} does not have the {segment.length} of {segment.name}")
    return part if part.segments is None else reordered(part, Segments((segment,)))


def _agree(name: str, parts: Sequence[Target]) -> None:
    """Refuse parts that no one target can hold."""
    scales = sorted({part.scale for part in parts})
    if len(scales) > 1:
        raise UnsupportedError(f"{name}: its parts have the scales {scales}, and one target has one")
    first = parts[0]
    for part in parts[1:]:
        for what, own, other in (
            ("kind", part.kind, first.kind),
            ("layout", part.layout, first.layout),
            ("inputs", _shape(part, 0), _shape(first, 0)),
            ("roles", sorted(part.tensors), sorted(first.tensors)),
            ("element types", _dtypes(part), _dtypes(first)),
            ("unknown fields", part.extra, first.extra),
        ):
            if own != other:
                raise InvalidInputError(f"{name}: {part.name} and {first.name} differ in {what}: {own} and {other}")


def _dtypes(target: Target) -> dict[str, str]:
    return {role: tensor.dtype for role, tensor in sorted(target.tensors.items())}


def _over_each_other(parts: Sequence[_Part], role: str, out: int) -> Tensor:
    """The tensors in ``role``, each in its rows; zeros elsewhere."""
    first = parts[0].target
    axis = _out_axis(first, role)
    assert axis is not None
    shape = list(first.tensors[role].shape)
    shape[axis] = out
    whole = np.zeros(shape, numpy_dtype(first.tensors[role].dtype))
    for part in parts:
        _rows_first(whole, axis)[part.rows] = _rows_first(to_array(part.target.tensors[role]), axis)
    return from_array(whole)


def _diagonal(parts: Sequence[_Part], a: str, b: str, out: int) -> tuple[Tensor, Tensor]:
    """A over each other, and B block-diagonal; ranks that undo an initialization go last, as the format has them."""
    experts = parts[0].target.kind is Kind.EXPERTS
    pieces = [(part, slice(0, _rank(part.target, b) - part.target.initial)) for part in parts]
    pieces += [(part, slice(piece.stop, _rank(part.target, b))) for part, piece in pieces if part.target.initial]
    stacked = [to_array(part.target.tensors[a])[(slice(None), piece) if experts else piece] for part, piece in pieces]
    rank = sum(piece.stop - piece.start for _, piece in pieces)
    like = parts[0].target.tensors[b]
    whole = np.zeros((*like.shape[: int(experts)], out, rank), numpy_dtype(like.dtype))
    column = 0
    for part, piece in pieces:
        stop = column + piece.stop - piece.start
        values = to_array(part.target.tensors[b])[..., piece]
        _rows_first(whole, int(experts))[part.rows, ..., column:stop] = _rows_first(values, int(experts))
        column = stop
    return from_array(np.concatenate(stacked, axis=int(experts))), from_array(whole)


def _rank(target: Target, b: str) -> int:
    return target.tensors[b].shape[-1]


def _rows_first(array: Array, axis: int) -> Array:
    """A view of ``array`` with ``axis`` first."""
    return np.moveaxis(array, axis, 0)
