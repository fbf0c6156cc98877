"""Matrices that are never made whole: each gives a run of its rows when it is asked.

A change is as large as the base tensor, and its factors are not. Merging goes through the tensor block by block
and needs the rows of one block at a time; what stays in memory is the factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from lora_registry.ops.arrays import Array

_SCRATCH = 1 << 18
"""Elements of scratch, as many as a block of a merge has."""


class Matrix(Protocol):
    """A matrix of ``shape`` (rows, columns)."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    def write(self, start: int, out: Array) -> None:
        """Write the rows from ``start`` into ``out`` (n, columns), float32 or float64; n tells how many."""


class Whole:
    """A matrix that is there as an array."""

    def __init__(self, array: Array) -> None:
        self.array = array
        self.shape: tuple[int, int] = array.shape

    def write(self, start: int, out: Array) -> None:
        """Copy rows."""
        out[...] = self.array[start : start + len(out)]


class Product:
    """left · right, with ``left`` (rows, r) and ``right`` (r, columns)."""

    def __init__(self, left: Array, right: Array) -> None:
        self.left, self.right = left, right
        self.shape = (left.shape[0], right.shape[1])

    def write(self, start: int, out: Array) -> None:
        """Multiply rows of the left factor; nothing but ``out`` is allocated."""
        np.matmul(self.left[start : start + len(out)], self.right, out=out)


class Hadamard:
    """first ∘ second, element by element, of two matrices of one shape."""

    def __init__(self, first: Matrix, second: Matrix) -> None:
        self.first, self.second = first, second
        self.shape = first.shape

    def write(self, start: int, out: Array) -> None:
        """Write the rows of one and multiply by those of the other, a few at a time."""
        self.first.write(start, out)
        scratch = _scratch(len(out), out.shape[1], out.dtype)
        for done in range(0, len(out), len(scratch)):
            rows = scratch[: len(out) - done]
            self.second.write(start + done, rows)
            out[done : done + len(rows)] *= rows


class Kronecker:
    """first ⊗ second: element (i1·n + i2, k1·m + k2) is first[i1, k1] · second[i2, k2], ``second`` being (n, m)."""

    def __init__(self, first: Matrix, second: Matrix) -> None:
        self.first, self.second = first, second
        self.shape = (first.shape[0] * second.shape[0], first.shape[1] * second.shape[1])

    def write(self, start: int, out: Array) -> None:
        """One row of the first with a run of rows of the second, as often as ``out`` has room."""
        inner, columns = self.second.shape
        factor = np.empty((1, self.first.shape[1]), out.dtype)
        scratch = _scratch(min(inner, len(out)), columns, out.dtype)
        done = 0
        while done < len(out):
            outer, inside = divmod(start + done, inner)
            rows = scratch[: min(len(out) - done, inner - inside)]
            self.first.write(outer, factor)
            self.second.write(inside, rows)
            place = out[done : done + len(rows)].reshape(len(rows), -1, columns)
            np.multiply(factor.reshape(1, -1, 1), rows[:, None, :], out=place)
            done += len(rows)


class Stack:
    """Matrices of one shape over each other."""

    def __init__(self, parts: Sequence[Matrix]) -> None:
        self.parts = parts
        rows, columns = parts[0].shape
        self.shape = (len(parts) * rows, columns)

    def write(self, start: int, out: Array) -> None:
        """The rows of each part that the run touches."""
        height = self.parts[0].shape[0]
        done = 0
        while done < len(out):
            part, inside = divmod(start + done, height)
            rows = out[done : done + height - inside]
            self.parts[part].write(inside, rows)
            done += len(rows)


def _scratch(rows: int, columns: int, dtype: np.dtype[Any]) -> Array:
    """Room for at most ``rows`` rows of ``columns`` columns, and at least for one."""
    return np.empty((min(rows, max(1, _SCRATCH // columns)), columns), dtype)
