"""The change of an adapter in an arithmetic that gives the same bits on every machine.

A matrix product of a BLAS depends on the library, the processor and the number of threads. Here every sum is taken in
binary64, in the order of the ranks, one multiplication and one addition at a time; numpy's ufuncs do that element by
element, and none of them fuses the two. Factors of at most 32 bits have exact products, so that not even fusing would
matter. What is still different on some machine (which flushes subnormal numbers, say) shows in the digests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lora_registry.dtypes import DTYPES
from lora_registry.ops.arrays import Array, numpy_dtype, round_to

_STEP = 1 << 14  # elements at a time: the sum and a term stay in the cache


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """s · Σₖ leftₖ ⊗ rightₖ, a matrix as a file stores it.

    Attributes:
        left: (rank, rows), any float type.
        right: (rank, columns), of the same type.
        scale: s.
    """

    left: Array
    right: Array
    scale: float

    @property
    def size(self) -> int:
        """Elements of the matrix."""
        return int(self.left.shape[1] * self.right.shape[1])

    def change(self, start: int, stop: int) -> Array:
        """The elements ``start`` to ``stop`` in row-major order, float64."""
        result = np.empty(stop - start)
        for first, rows, columns in _rectangles(start, stop, self.right.shape[1]):
            left, right = (part.astype(np.float64) for part in (self.left[:, rows, None], self.right[:, None, columns]))
            total = left[0] * right[0]
            term = np.empty_like(total)
            for row, column in zip(left[1:], right[1:], strict=True):
                np.multiply(row, column, out=term)
                np.add(total, term, out=total)
            total *= self.scale
            result[first - start : first - start + total.size] = total.reshape(-1)
        return result

    def predicted(self, words: Array, start: int, dtype: str, *, subtract: bool) -> Array:
        """The words of W + change, or W - change, rounded once to the type of W; 0 where that is NaN.

        Args:
            words: the bits of W from element ``start`` on, unsigned, of the size of ``dtype``.
            start: number of the first element.
            dtype: float type of W.
            subtract: W - change.
        """
        result = np.empty_like(words)
        weights = words.view(numpy_dtype(dtype))
        with np.errstate(all="ignore"):
            for begin in range(0, len(words), _STEP):
                part = slice(begin, min(begin + _STEP, len(words)))
                change = self.change(start + part.start, start + part.stop)
                wide = weights[part].astype(np.float64)
                np.subtract(wide, change, out=wide) if subtract else np.add(wide, change, out=wide)
                result[part] = np.where(np.isnan(wide), words.dtype.type(0), round_to(wide, dtype).view(words.dtype))
        return result


def is_computable(dtype: str) -> bool:
    """Whether a change can be added to elements of this type: floats of 16 bits or more."""
    return dtype in DTYPES and DTYPES[dtype].is_wide_float


def _rectangles(start: int, stop: int, columns: int) -> Iterator[tuple[int, slice, slice]]:
    """A range of elements as rectangles of the matrix: whole rows, and what is left of the first and the last one."""
    while start < stop:
        row, column = divmod(start, columns)
        rows = 1 if column else max(1, (stop - start) // columns)
        width = min(columns - column, stop - start)
        yield start, slice(row, row + rows), slice(column, column + width)
        start += rows * width
