"""Scales, or zero points, that blocks of a matrix share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np

from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """One number for each block of a weight of two axes, or of more, which are stacks of matrices.

    Attributes:
        shape: of the weight.
        block: rows and columns of a block; those at the end may be cut off.
        values: one a block, (blocks below each other over all matrices, blocks side by side).
    """

    shape: tuple[int, ...]
    block: tuple[int, int]
    values: Array

    @classmethod
    def over(cls, shape: tuple[int, ...], values: Array, blocks: Iterable[tuple[int, int]]) -> Self | None:
        """Lay ``values`` over a weight: one for all of it, one a row, or one a block.

        Args:
            shape: of the weight, at least two axes.
            values: of any shape that fits; one axis is one number a row.
            blocks: rows and columns that a block may have; the first that fits is taken.

        Returns:
            None where nothing fits.
        """
        rows, columns = shape[-2:]
        if values.size == 1:
            return cls(shape, (rows, columns), np.broadcast_to(values.reshape(1, 1), (prod(shape[:-2]), 1)))
        if values.ndim == 1:
            values = values[:, np.newaxis]
        if values.ndim != len(shape) or values.shape[:-2] != shape[:-2]:
            return None
        for high, wide in ((1, columns), *blocks):
            if (-(-rows // high), -(-columns // wide)) == values.shape[-2:]:
                return cls(shape, (high, wide), values.reshape(-1, values.shape[-1]))
        return None

    @property
    def is_single(self) -> bool:
        """Whether one number is for more than one matrix, or all rows of one."""
        return self.values.strides[0] == 0 or (self.values.shape == (1, 1) and self.shape[-2] > 1)

    @property
    def step(self) -> int:
        """Rows that a block of rows is made of: a run that begins at a multiple of this cuts no block."""
        cut = len(self.shape) > 2 and self.shape[-2] % self.block[0]  # the blocks of each matrix begin anew
        return self.shape[-2] if cut else self.block[0]

    def _blocks(self, first: int, last: int) -> Array:
        """In which row of ``values`` the number of each row is."""
        matrix, row = np.divmod(np.arange(first, last), self.shape[-2])
        high = -(-self.shape[-2] // self.block[0])
        chosen: Array = matrix * high + row // self.block[0]
        return chosen

    def within(self, first: int, last: int) -> slice:
        """The rows of ``values`` that some rows have their numbers in; they begin and end with blocks."""
        blocks = self._blocks(first, last)
        return slice(int(blocks[0]), int(blocks[-1]) + 1)

    def reduce(self, first: int, last: int, rows: Array, ufunc: np.ufunc) -> Array:
        """One number for each block of some rows, made of its elements: as ``values[within(first, last)]``."""
        blocks = self._blocks(first, last)
        starts = np.flatnonzero(np.diff(blocks, prepend=-1))
        down = ufunc.reduceat(rows, starts, axis=0)
        result: Array = ufunc.reduceat(down, np.arange(0, rows.shape[1], self.block[1]), axis=1)
        return result

    def spread(self, first: int, last: int, values: Array) -> Array:
        """``values``, one a block as :meth:`reduce` gives them, for each element of some rows."""
        blocks = self._blocks(first, last)
        result: Array = np.repeat(values[blocks - blocks[0]], self.block[1], axis=1)[:, : self.shape[-1]]
        return result

    def rows(self, first: int, last: int) -> Array:
        """The number of each element of some rows, which are counted over all matrices."""
        return self.spread(first, last, self.values[self.within(first, last)])
