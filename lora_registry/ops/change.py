"""What a target does to its base tensor: the formulas of ``adapter.py`` in numpy.

The sum of W and the change stays unrounded until the caller rounds it once to the output dtype; the change
itself is computed in float32, or in float64 where the base is F64 (:mod:`~lora_registry.ops.factors`). These
are the numerics of PEFT's ``merge_and_unload()`` (0.21) for float32 factors; PEFT rounds the change once more
in between where the factors themselves are half precision.

A magnitude (DoRA) scales each output: W' = m ∘ (W + ΔW) / ‖W + ΔW‖, with the norm over all axes but the
output's and of the unrounded sum (PEFT 0.21, tuners/lora/dora.py). Where outputs are columns, the norms
need a pass of their own over the whole tensor before the first block can be scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from math import prod

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array, dtype_name, from_array, to_array, widened
from lora_registry.ops.factors import FACTORED, change_matrix, scaled
from lora_registry.ops.matrices import Matrix
from lora_registry.ops.mergeable import check_target

BLOCK = 1 << 18
"""Elements of a block: 1 MB of float32, so that base, result and scratch stay in a core's cache."""


def merged(target: Target, base: Array | None) -> Array:
    """W' of a whole tensor, before it is rounded.

    Args:
        target: the change.
        base: W as stored, any float type; not needed for a full target, or where the target brings a value.

    Returns:
        An array in the axis order of the stored tensor: float64 where W is, float32 otherwise. It has W's shape,
        but for tokens behind those of the base, which are its last rows. A full target of integers comes back
        as it is.

    Raises:
        InvalidInputError: W has another shape than the target, or a type that does not fit (P-054), or W' is not
            finite although W is.
        UnsupportedError: the change cannot be made in W: see :class:`RowMerger`.
    """
    if base is not None:
        _check_types(target, base)
    if target.kind is Kind.FULL:
        return _replaced(target, base)
    weight = own_weight(target) if base is None else base
    if weight is None:
        raise InvalidInputError(f"{target.name}: a {target.kind} target changes a base tensor, and there is none")
    if target.length is not None:
        return _grown(target, weight)
    if target.kind is Kind.TOKENS and not _is_floating(weight):
        table = weight.copy()  # the value has the same type: bits, not numbers
        table[list(target.rows)] = to_array(target.tensors["value"])
        return table
    merger = RowMerger(target, weight.shape, _type_for(weight))
    flat = weight.reshape(-1)
    if merger.needs_norms:
        merger.measure_norms(lambda start, stop: flat[start:stop])
    return merger.merge(0, flat.size, flat).reshape(weight.shape)


def own_weight(target: Target) -> Array | None:
    """The value that stands for W beside factors (section 5.3); None where W is the base's."""
    return to_array(target.tensors["value"]) if target.kind in FACTORED and "value" in target.tensors else None


def _replaced(target: Target, base: Array | None) -> Array:
    """The value of a full target; the base has no W for it where its tensor has another shape, or is not there."""
    value = widened(to_array(target.tensors["value"]))
    before = widened(base).reshape(-1) if base is not None and base.shape == value.shape else None
    refuse_nonfinite(target.name, 0, before, value.reshape(-1))
    return value


def _check_types(target: Target, base: Array) -> None:
    """P-054: sums need floating-point types; a value of W's own type replaces it, or rows of it, whatever it is."""
    if target.kind in (Kind.FULL, Kind.TOKENS):
        value = to_array(target.tensors["value"])
        fits = value.dtype == base.dtype or (_is_floating(value) and _is_floating(base))
    else:
        fits = _is_floating(base)
    if not fits:
        raise InvalidInputError(f"{target.name}: a base tensor of {base.dtype} does not take this {target.kind} target")


def _is_floating(array: Array) -> bool:
    return DTYPES[dtype_name(array.dtype)].floating


def _type_for(weight: Array) -> type[np.floating]:
    return np.float64 if weight.dtype == np.float64 else np.float32


def _grown(target: Target, base: Array) -> Array:
    """The table of ``base`` with the rows that ``target`` replaces, and those that it adds, behind it."""
    assert target.length is not None
    added = target.length - len(base)
    replaced = len(target.rows) - added
    value = to_array(target.tensors["value"])
    kept = replace(
        target, rows=target.rows[:replaced], length=None, tensors={"value": from_array(value[:replaced])}, digests={}
    )
    rows = value[replaced:].astype(_type_for(base)) if _is_floating(base) else value[replaced:]
    refuse_nonfinite(target.name, base.size, None, rows.reshape(-1))
    return np.concatenate((merged(kept, base) if replaced else base.astype(rows.dtype), rows))


def delta(target: Target) -> Array:
    """W' - W as float32, in the shape and axis order of the stored tensor.

    Raises:
        UnsupportedError: the target is no sum: full, tokens, or a grouped conv. A magnitude is left out.
    """
    dtype = np.dtype(np.float32)
    if target.kind is Kind.BIAS:
        return scaled(target, "delta", dtype)
    if target.kind not in FACTORED | {Kind.SPARSE}:
        raise UnsupportedError(f"{target.name}: a {target.kind} target replaces values, it adds no change")
    assert target.shape is not None  # only tokens may leave it out
    change = np.zeros(target.shape, dtype)
    if target.kind is Kind.SPARSE:
        change.reshape(-1)[positions(target)] = scaled(target, "delta", dtype)
        return change
    check_target(target)
    matrix = change_matrix(target, dtype)
    matrix.write(0, change.reshape(matrix.shape))
    return change


def positions(target: Target) -> Array:
    """The flat positions of a sparse target, I64.

    Raises:
        InvalidInputError: they are not ascending, or lie beyond the tensor (R-045, which needs the data).
    """
    index = to_array(target.tensors["index"])
    assert target.shape is not None
    if index[0] < 0 or index[-1] >= prod(target.shape) or not (index[1:] > index[:-1]).all():
        raise InvalidInputError(f"{target.name}: its positions are not ascending and within {list(target.shape)}")
    return index


class RowMerger:
    """The change of one target, block by block, so that memory does not grow with the tensor.

    A block is a range of elements of the stored tensor in row-major order that begins and ends between
    rows. ``for start, stop in merger.blocks(): out = merger.merge(start, stop, base[start:stop])``; where
    :attr:`needs_norms`, call :meth:`measure_norms` before. Not for full targets, which merge nothing.

    Args:
        target: any kind but full.
        shape: shape of the base tensor as stored.
        dtype: float32, or float64 for an F64 base.

    Attributes:
        target: the same.
        size: elements of the tensor.
        dtype: type of the computation, and of the arrays below.
        matrix: what the factors make; None of kinds without.
        delta: what is added, of a bias or sparse target, times the scale.
        index: flat positions of a sparse target, ascending.
        magnitude: that of each output.
        value: what stands for W, flat.

    Raises:
        InvalidInputError: ``shape`` is not that of the target, a row or a position lies beyond it, or the rows of a
            tokens target are integers (P-054).
        UnsupportedError: the change has no place in a tensor of that shape:
            see :func:`~lora_registry.ops.mergeable.check_target`.
    """

    def __init__(self, target: Target, shape: tuple[int, ...], dtype: type[np.floating] = np.float32) -> None:
        check_target(target)
        if target.shape is not None and tuple(shape) != target.shape:
            raise InvalidInputError(
                f"{target.name}: the base tensor has shape {list(shape)}, the target {list(target.shape)}"
            )
        if target.rows and target.rows[-1] >= shape[0]:
            raise InvalidInputError(f"{target.name}: row {target.rows[-1]} is beyond the {shape[0]} rows of the base")
        if target.kind is Kind.TOKENS and not _is_floating(to_array(target.tensors["value"])):
            raise InvalidInputError(f"{target.name}: rows of integers in a table of floating-point numbers (P-054)")
        self.target = target
        self.size = prod(shape)
        self.dtype = np.dtype(dtype)
        self.matrix: Matrix | None = change_matrix(target, self.dtype) if target.kind in FACTORED else None
        # Only factors and rows of tokens need to know where a row ends; those of tokens are along the second axis.
        self._columns = self.matrix.shape[1] if self.matrix is not None else prod(shape[1:2])
        self.delta = scaled(target, "delta", self.dtype) if "delta" in target.tensors else None
        self.index = positions(target) if target.kind is Kind.SPARSE else None
        self.magnitude = to_array(target.tensors["magnitude"]).astype(self.dtype) if self._is_dora else None
        self._factor: Array | None = None
        value = own_weight(target)
        self.value = None if value is None else value.reshape(-1)

    @property
    def _is_dora(self) -> bool:
        return "magnitude" in self.target.tensors

    @property
    def _outputs_are_columns(self) -> bool:
        return self.target.layout == ("in", "out")

    @property
    def columns(self) -> int:
        """Elements of a row: blocks begin and end at multiples of it."""
        return self._columns

    @property
    def needs_norms(self) -> bool:
        """Whether :meth:`measure_norms` must run first: DoRA where outputs are columns."""
        return self._is_dora and self._outputs_are_columns

    @property
    def is_product(self) -> bool:
        """Whether the change is a matrix that is added to W, and nothing else: :meth:`write_change` gives it."""
        return self.matrix is not None and not self._is_dora and self.value is None

    def write_change(self, start: int, stop: int, out: Array) -> None:
        """Write W' - W of the elements ``start`` to ``stop``, whole rows; only where :attr:`is_product`."""
        assert self.matrix is not None
        self.matrix.write(start // self._columns, out[: stop - start].reshape(-1, self._columns))

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
        assert self.matrix is not None
        assert self.magnitude is not None
        squares = np.zeros(self._columns, dtype=np.float64)
        block = np.empty(next(self.blocks())[1], dtype=self.dtype)
        for start, stop in self.blocks():
            self._sum(self.matrix, start, stop, read(start, stop), block[: stop - start])
            total = block[: stop - start].reshape(-1, self._columns)
            squares += np.einsum("rc,rc->c", total, total, dtype=np.float64)
        norms = np.sqrt(squares)
        self._refuse_overflow(norms)
        self._factor = (self.magnitude / norms).astype(self.dtype)

    def base(self, start: int, stop: int, read: Array) -> Array:
        """What the change is made on: the target's own value where it has one, else what was read; widened."""
        block = read if self.value is None else self.value[start:stop]
        return block.astype(self.dtype, copy=False)

    def merge(self, start: int, stop: int, base: Array, out: Array | None = None) -> Array:
        """W' of the elements ``start`` to ``stop``, unrounded.

        Args:
            start: first element; the start of a row.
            stop: one past the last; the end of a row.
            base: W of these elements, flat, any float type.
            out: where the result goes, flat, of the type of the computation; must not overlap ``base``. None makes
                a new array.

        Returns:
            A flat array of float32 or float64: ``out``, where it was given.

        Raises:
            InvalidInputError: the result is not finite where the base is.
        """
        with np.errstate(all="ignore"):  # what goes wrong shows in the result, which is checked
            result = np.empty(stop - start, dtype=self.dtype) if out is None else out
            self._merge(start, stop, base, result)
            # One reduction tells that all is well, as NaN and infinity spread into it; only otherwise look closer.
            suspicious = not np.isfinite(np.dot(result, result))
        if suspicious:
            refuse_nonfinite(self.target.name, start, self.base(start, stop, base), result)
        return result

    def _merge(self, start: int, stop: int, base: Array, result: Array) -> None:
        if self.matrix is not None:
            self._sum(self.matrix, start, stop, base, result)
            if self.magnitude is not None:
                self._normalize(self.magnitude, start, stop, result)
            return
        np.copyto(result, base, casting="unsafe")
        if self.delta is None:
            self._replace_rows(start, stop, result)
        elif self.index is None:
            result += self.delta[start:stop]
        else:
            first, last = np.searchsorted(self.index, (start, stop))
            result[self.index[first:last] - start] += self.delta[first:last]

    def _sum(self, matrix: Matrix, start: int, stop: int, base: Array, result: Array) -> None:
        """Write W + ΔW of a block, flat, into ``result``."""
        matrix.write(start // self._columns, result.reshape(-1, self._columns))
        result += self.base(start, stop, base)

    def _normalize(self, magnitude: Array, start: int, stop: int, total: Array) -> None:
        """Give every output its magnitude: m ∘ total / ‖total‖, in place."""
        table = total.reshape(-1, self._columns)
        if self._outputs_are_columns:
            assert self._factor is not None, "measure_norms() comes first"
            table *= self._factor
        else:
            norms = np.sqrt(np.einsum("rc,rc->r", table, table, dtype=np.float64))
            if np.isfinite(table).all():
                self._refuse_overflow(norms)
            rows = slice(start // self._columns, stop // self._columns)
            table *= (magnitude[rows] / norms).astype(self.dtype)[:, None]

    def _refuse_overflow(self, norms: Array) -> None:
        """Refuse norms whose squares float64 does not hold: dividing by infinity would make zeros in silence."""
        if np.isinf(norms).any():
            raise InvalidInputError(f"{self.target.name}: the norm of an output leaves the range of float64")

    def _replace_rows(self, start: int, stop: int, result: Array) -> None:
        """Put the rows of a tokens target into a block."""
        table, first, last = result.reshape(-1, self._columns), start // self._columns, stop // self._columns
        value = to_array(self.target.tensors["value"])
        for index, row in enumerate(self.target.rows):
            if first <= row < last:
                table[row - first] = value[index]


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
