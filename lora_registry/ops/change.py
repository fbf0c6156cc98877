"""What a target does to its base tensor: the formulas of ``adapter.py`` in numpy.

Every low-rank kind is one kernel. As stored, a base tensor is a stack of matrices: a linear or embedding
weight is one, a conv kernel is one of shape (out, in·k…), experts are one for each expert. On each matrix
the change is ``left @ right`` with ``left (rows, r)`` and ``right (r, columns)``:

    ========================= ============== =========
    stored as                 left           right
    ========================= ============== =========
    (out, in…)                s·B            A
    (in, out)                 Aᵀ             (s·B)ᵀ
    ========================= ============== =========

s multiplies B, in float64, rounded once to the type of the computation: float32, or float64 where the base
is F64. The sum W + left @ right stays unrounded until the caller rounds it once to the output dtype. These
are the numerics of PEFT's ``merge_and_unload()`` (0.21) for float32 factors; PEFT rounds the change once
more in between where the factors themselves are half precision.

A magnitude (DoRA) scales each output: W' = m ∘ (W + ΔW) / ‖W + ΔW‖, with the norm over all axes but the
output's and of the unrounded sum (PEFT 0.21, tuners/lora/dora.py). Where outputs are columns, the norms
need a pass of their own over the whole tensor before the first block can be scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from lora_registry.adapter import LOW_RANK, Kind, Target
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array, to_array, widened

BLOCK = 1 << 18
"""Elements of a block: 1 MB of float32, so that base, result and scratch stay in a core's cache."""


def merged(target: Target, base: Array | None) -> Array:
    """W' of a whole tensor, before it is rounded.

    Args:
        target: the change.
        base: W as stored, any float type; not needed for a full target, or where the target brings a value.

    Returns:
        An array of the shape and axis order of the stored tensor: float64 where W is, float32 otherwise. A
        full target of integers comes back as it is.

    Raises:
        InvalidInputError: W has another shape than the target, or W' is not finite although W is.
        UnsupportedError: the change cannot be made in W: see :class:`RowMerger`.
    """
    if target.kind is Kind.FULL:
        value = widened(to_array(target.tensors["value"]))
        same = base is not None and base.shape == value.shape
        refuse_nonfinite(
            target.name, 0, widened(base).reshape(-1) if base is not None and same else None, value.reshape(-1)
        )
        return value
    if base is None and "value" not in target.tensors:
        raise InvalidInputError(f"{target.name}: a {target.kind} target changes a base tensor, and there is none")
    weight = to_array(target.tensors["value"]) if base is None else base
    merger = RowMerger(target, weight.shape, np.float64 if weight.dtype == np.float64 else np.float32)
    flat = weight.reshape(-1)
    if merger.needs_norms:
        merger.measure_norms(lambda start, stop: flat[start:stop])
    return merger.merge(0, flat.size, flat).reshape(weight.shape)


def delta(target: Target) -> Array:
    """s·B·A (or s·delta of a bias) as float32, in the shape and axis order of the stored tensor.

    Raises:
        UnsupportedError: the target is no sum: full, tokens, or a grouped conv. A magnitude is left out.
    """
    if target.kind is Kind.BIAS:
        return _scaled(target, "delta", np.dtype(np.float32))
    if target.kind not in LOW_RANK:
        raise UnsupportedError(f"{target.name}: a {target.kind} target replaces values, it adds no change")
    assert target.shape is not None  # only tokens may leave it out
    left, right = _factors(target, np.dtype(np.float32))
    change: Array = np.matmul(left, right)
    return change.reshape(target.shape)


def check_mergeable(target: Target) -> None:
    """Refuse what can be served and not merged, before anything is computed.

    Raises:
        UnsupportedError: a grouped conv in PEFT's form. PEFT raises NotImplementedError for it.
    """
    if target.groups != 1:
        raise UnsupportedError(
            f"{target.name}: a grouped conv ({target.groups} groups) cannot be merged: its factors connect every "
            "output with every input, and the base kernel has no place for that; serve it unmerged"
        )


def _scaled(target: Target, role: str, dtype: np.dtype[np.floating]) -> Array:
    with np.errstate(over="ignore"):  # infinities spread into the result, which is checked
        return (to_array(target.tensors[role]).astype(np.float64) * target.scale).astype(dtype)


def _factors(target: Target, dtype: np.dtype[np.floating]) -> tuple[Array, Array]:
    """The two matrices of the kernel: left (matrices, rows, r) and right (matrices, r, columns)."""
    check_mergeable(target)
    a, b = to_array(target.tensors["A"]).astype(dtype), _scaled(target, "B", dtype)
    if target.kind is not Kind.EXPERTS:
        a, b = a.reshape(1, a.shape[0], -1), b.reshape(1, b.shape[0], -1)
    if target.layout.index("out") < target.layout.index("in"):
        return b, a
    return np.ascontiguousarray(a.transpose(0, 2, 1)), np.ascontiguousarray(b.transpose(0, 2, 1))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of rows of one matrix inside a block, in rows of that matrix and in elements of the block."""

    matrix: int
    rows: slice
    elements: slice


class RowMerger:
    """The change of one target, block by block, so that memory does not grow with the tensor.

    A block is a range of elements of the stored tensor in row-major order that begins and ends between
    rows. ``for start, stop in merger.blocks(): out = merger.merge(start, stop, base[start:stop])``; where
    :attr:`needs_norms`, call :meth:`measure_norms` before. Not for full targets, which merge nothing.

    Args:
        target: any kind but full.
        shape: shape of the base tensor as stored.
        dtype: float32, or float64 for an F64 base.

    Raises:
        InvalidInputError: ``shape`` is not that of the target, or a tokens row lies beyond it.
        UnsupportedError: a grouped conv, whose change has no place in the base kernel (PEFT refuses it too).
    """

    def __init__(self, target: Target, shape: tuple[int, ...], dtype: type[np.floating] = np.float32) -> None:
        if target.shape is not None and tuple(shape) != target.shape:
            raise InvalidInputError(
                f"{target.name}: the base tensor has shape {list(shape)}, the target {list(target.shape)}"
            )
        self.target = target
        self.size = prod(shape)
        self._dtype = np.dtype(dtype)
        self._left: Array | None = None
        self._right: Array | None = None
        self._factor: Array | None = None
        self._delta: Array | None = None
        self._norms_by_column = False
        if target.kind in LOW_RANK:
            self._left, self._right = _factors(target, self._dtype)
            self._norms_by_column = target.layout == ("in", "out")
        elif target.kind is Kind.BIAS:
            self._delta = _scaled(target, "delta", self._dtype)
        elif target.rows and target.rows[-1] >= shape[0]:
            raise InvalidInputError(f"{target.name}: row {target.rows[-1]} is beyond the {shape[0]} rows of the base")
        self._columns = self._right.shape[2] if self._right is not None else (shape[1] if len(shape) > 1 else 1)
        self._rows = self._left.shape[1] if self._left is not None else shape[0]
        self._value = to_array(target.tensors["value"]).reshape(-1) if self._replaces_base else None
        self._magnitude = to_array(target.tensors["magnitude"]).astype(self._dtype) if self._is_dora else None

    @property
    def _is_dora(self) -> bool:
        return "magnitude" in self.target.tensors

    @property
    def _replaces_base(self) -> bool:
        return self._left is not None and "value" in self.target.tensors

    @property
    def needs_norms(self) -> bool:
        """Whether :meth:`measure_norms` must run first: DoRA where outputs are columns."""
        return self._is_dora and self._norms_by_column

    def blocks(self, elements: int = BLOCK) -> Iterator[tuple[int, int]]:
        """Ranges of about ``elements`` elements, whole rows each, that cover the tensor in order."""
        step = max(1, elements // self._columns) * self._columns
        for start in range(0, self.size, step):
            yield start, min(start + step, self.size)

    def measure_norms(self, read: Callable[[int, int], Array]) -> None:
        """Go over the whole tensor once to learn ‖W + ΔW‖ of every output column.

        Args:
            read: gives the elements of the base tensor in a range; called for every block in order.
        """
        assert self._magnitude is not None
        squares = np.zeros(self._columns, dtype=np.float64)
        for start, stop in self.blocks():
            total = self._sum(start, stop, read(start, stop)).reshape(-1, self._columns)
            squares += np.einsum("rc,rc->c", total, total, dtype=np.float64)
        self._factor = (self._magnitude / np.sqrt(squares)).astype(self._dtype)

    def base(self, start: int, stop: int, read: Array) -> Array:
        """What the change is made on: the target's own value where it has one, else what was read; widened."""
        block = read if self._value is None else self._value[start:stop]
        return block.astype(self._dtype, copy=False)

    def merge(self, start: int, stop: int, base: Array) -> Array:
        """W' of the elements ``start`` to ``stop``, unrounded.

        Args:
            start: first element; the start of a row.
            stop: one past the last; the end of a row.
            base: W of these elements, flat, any float type.

        Returns:
            A new flat array of float32 or float64.

        Raises:
            InvalidInputError: the result is not finite where the base is.
        """
        with np.errstate(all="ignore"):  # what goes wrong shows in the result, which is checked
            result = self._merge(start, stop, base)
            # One reduction tells that all is well, as NaN and infinity spread into it; only otherwise look closer.
            suspicious = not np.isfinite(np.dot(result, result))
        if suspicious:
            refuse_nonfinite(self.target.name, start, self.base(start, stop, base), result)
        return result

    def _merge(self, start: int, stop: int, base: Array) -> Array:
        if self._delta is not None:
            return base.astype(self._dtype) + self._delta[start:stop]
        if self._left is None:
            return self._replace_rows(start, stop, base)
        total = self._sum(start, stop, base)
        if self._magnitude is None:
            return total
        table = total.reshape(-1, self._columns)
        if self._norms_by_column:
            assert self._factor is not None, "measure_norms() comes first"
            table *= self._factor
        else:
            norms = np.sqrt(np.einsum("rc,rc->r", table, table, dtype=np.float64))
            rows = slice(start // self._columns, stop // self._columns)
            table *= (self._magnitude[rows] / norms).astype(self._dtype)[:, None]
        return total

    def _replace_rows(self, start: int, stop: int, base: Array) -> Array:
        result = base.astype(self._dtype)
        table, first, last = result.reshape(-1, self._columns), start // self._columns, stop // self._columns
        value = to_array(self.target.tensors["value"])
        for index, row in enumerate(self.target.rows):
            if first <= row < last:
                table[row - first] = value[index]
        return result

    def _sum(self, start: int, stop: int, base: Array) -> Array:
        """W + ΔW of a block, in a new flat array."""
        assert self._left is not None
        assert self._right is not None
        result = np.empty(stop - start, dtype=self._dtype)
        for piece in self._pieces(start, stop):
            out = result[piece.elements].reshape(-1, self._columns)
            np.matmul(self._left[piece.matrix, piece.rows], self._right[piece.matrix], out=out)
        result += self.base(start, stop, base)
        return result

    def _pieces(self, start: int, stop: int) -> Iterator[_Piece]:
        row, end = start // self._columns, stop // self._columns
        first = row
        while row < end:
            matrix, inside = divmod(row, self._rows)
            take = min(end - row, self._rows - inside)
            elements = slice((row - first) * self._columns, (row - first + take) * self._columns)
            yield _Piece(matrix, slice(inside, inside + take), elements)
            row += take


def refuse_nonfinite(name: str, start: int, before: Array | None, after: Array) -> None:
    """Refuse a result that is not finite where the base is.

    Args:
        name: of the target, for the message.
        start: number of the first element of ``after`` in its tensor.
        before: W, flat; None where the base has no such tensor.
        after: W', flat. Anything but floats passes.

    Raises:
        InvalidInputError: there is such an element.
    """
    if after.dtype.kind != "f":
        return
    bad = ~np.isfinite(after)
    if before is not None:
        bad &= np.isfinite(before)
    if bad.any():
        where = start + int(np.argmax(bad))
        raise InvalidInputError(
            f"{name}: the merged weight is not finite at element {where} although the base is; the adapter is broken"
        )
