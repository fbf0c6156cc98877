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

    def rows(self, first: int, last: int) -> Array:
        """The number of each element of some rows, which are counted over all matrices."""
        matrix, row = np.divmod(np.arange(first, last), self.shape[-2])
        high = -(-self.shape[-2] // self.block[0])
        chosen = self.values[matrix * high + row // self.block[0]]
        spread: Array = np.repeat(chosen, self.block[1], axis=1)[:, : self.shape[-1]]
        return spread
