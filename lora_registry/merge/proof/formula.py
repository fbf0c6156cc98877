"""The changes of targets as section 5 of the format and ``spec/extensions.md`` write them, row by row, in float64.

Written a second time on purpose, and plainly: a merge is judged by these, and shares none of its arithmetic with
them. A stored tensor is seen as a matrix: one row for each element of its first axis, and for each output or
input of each expert; what is left are columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.ops.arrays import Array, to_array

Factors = Mapping[str, Array]
"""Role to tensor, in float64."""

_REPLACING = frozenset({Kind.FULL, Kind.TOKENS})


def matrix_shape(kind: Kind | None, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a stored tensor of ``shape``, which a target of ``kind`` changes, or none."""
    leading = 2 if kind is Kind.EXPERTS else 1
    return prod(shape[:leading]), prod(shape[leading:])


def factors_of(target: Target) -> dict[str, Array]:
    """The tensors that make the change, exact in float64, without magnitude, value and index."""
    roles = target.tensors.keys() - {"magnitude", "value", "index"}
    return {role: to_array(target.tensors[role]).astype(np.float64) for role in sorted(roles)}


def terms(target: Target) -> int:
    """How many products are added up for one element of the change, at most."""
    ranks = [target.tensors[role].shape[0] for role in ("A1", "A2") if role in target.tensors]
    return (target.rank or 1) + sum(ranks)


def replaces(target: Target) -> bool:
    """Whether the target puts values in the place of W's instead of adding to them."""
    return target.kind in _REPLACING


def outputs_are_rows(target: Target) -> bool:
    """Whether a row of the stored tensor belongs to one output, so that its norm is that of the row."""
    return target.layout.index("out") < target.layout.index("in")


def change(target: Target, factors: Factors, rows: Array) -> Array:
    """The given rows of the change divided by s: B·A, or what the kind has in its place.

    Args:
        target: says kind, layout and shape; no kind that replaces.
        factors: what :func:`factors_of` gives, or the same rounded, or their absolute values.
        rows: numbers of rows, int64 (n,).

    Returns:
        float64 (n, columns).
    """
    match target.kind:
        case Kind.LINEAR | Kind.EMBEDDING:
            return _of_layout(target, factors["B"], factors["A"], rows)
        case Kind.CONV:
            b, a = factors["B"], factors["A"]
            return _of_layout(target, b.reshape(b.shape[0], -1), a.reshape(a.shape[0], -1), rows)
        case Kind.EXPERTS:
            return _experts(target, factors, rows)
        case Kind.LOHA:
            flat = {role: array.reshape(len(array), -1) for role, array in factors.items()}
            first = _of_layout(target, flat["B1"], flat["A1"], rows)
            return first * _of_layout(target, flat["B2"], flat["A2"], rows)
        case Kind.LOKR:
            return _kronecker(target, factors, rows)
        case Kind.SPARSE:
            return _sparse(target, factors["delta"], rows)
        case _:
            return factors["delta"][rows][:, None]


def _of_layout(target: Target, b: Array, a: Array, rows: Array) -> Array:
    """(B·A)[rows], or (B·A)ᵀ[rows] where outputs are columns."""
    result: Array = b[rows] @ a if outputs_are_rows(target) else a[:, rows].T @ b.T
    return result


def _experts(target: Target, factors: Factors, rows: Array) -> Array:
    assert target.shape is not None
    expert, inside = np.divmod(rows, target.shape[1])
    result = np.empty((len(rows), target.shape[2]))
    for each in np.unique(expert):
        own = expert == each
        result[own] = _of_layout(target, factors["B"][each], factors["A"][each], inside[own])
    return result


def _kronecker(target: Target, factors: Factors, rows: Array) -> Array:
    """Output a·o₂ + b and input c·i₂ + d of C₁ ⊗ C₂ are C₁(a, c) · C₂(b, d)."""
    first, second = (_whole(factors, number) for number in "12")
    if outputs_are_rows(target):
        outer, inner = np.divmod(rows, second.shape[0])
        left, right = first[outer], second[inner]
    else:
        outer, inner = np.divmod(rows, second.shape[1])
        left, right = first[:, outer].T, second[:, inner].T
    # Kernel axes, which C2 alone has, come last and go along.
    right = right.reshape(len(rows), 1, -1)
    return (left[:, :, None] * right).reshape(len(rows), -1)


def _whole(factors: Factors, number: str) -> Array:
    if "C" + number in factors:
        return factors["C" + number]
    a, b = factors["A" + number], factors["B" + number]
    return np.tensordot(b, a, axes=1)


def _sparse(target: Target, delta: Array, rows: Array) -> Array:
    assert target.shape is not None
    columns = matrix_shape(target.kind, target.shape)[1]
    index = to_array(target.tensors["index"])
    result = np.zeros((len(rows), columns))
    for place, row in enumerate(rows):
        own = slice(*np.searchsorted(index, [row * columns, (row + 1) * columns]))
        result[place, index[own] - row * columns] = delta[own]
    return result


def replaced(target: Target, rows: Array, weight: Array) -> Array:
    """The given rows of W' for a target that replaces: its value, or that of its rows, over ``weight`` (n, columns)."""
    value = to_array(target.tensors["value"])
    if target.kind is Kind.FULL:
        return value.reshape(matrix_shape(target.kind, value.shape))[rows].astype(weight.dtype, copy=False)
    result = weight.copy()
    place = {row: number for number, row in enumerate(target.rows)}
    for number, row in enumerate(rows.tolist()):
        if row in place:
            result[number] = value[place[row]]
    return result
