"""Scales, or zero points, that blocks of a matrix share."""

from __future__ import annotations

from dataclasses import dataclass
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
    def over(cls, shape: tuple[int, ...], values: Array, block: tuple[int, int] | None = None) -> Self | None:
        """Lay ``values`` over a weight: one for all of it, one a row, or one a block.

        Args:
            shape: of the weight, at least two axes.
            values: of any shape that fits; one axis is one number a row.
            block: rows and columns of a block; None, or one that does not fit, takes equal parts.

        Returns:
            None where the shapes do not fit.
        """
        rows, columns = shape[-2:]
        if values.size == 1:
            values = values.reshape((1,) * len(shape))
        elif values.ndim == 1:
            values = values[:, np.newaxis]
        if values.ndim != len(shape) or (values.shape[:-2] != shape[:-2] and values.size != 1):
            return None
        high, wide = values.shape[-2:]
        if block is None or (-(-rows // block[0]), -(-columns // block[1])) != (high, wide):
            if not high or not wide or rows % high or columns % wide:
                return None
            block = rows // high, columns // wide
        if values.size == 1:
            values = np.broadcast_to(values, (*shape[:-2], 1, 1))
        return cls(shape, block, values.reshape(-1, wide))

    def rows(self, first: int, last: int) -> Array:
        """The number of each element of some rows, which are counted over all matrices."""
        matrix, row = np.divmod(np.arange(first, last), self.shape[-2])
        high = -(-self.shape[-2] // self.block[0])
        chosen = self.values[matrix * high + row // self.block[0]]
        spread: Array = np.repeat(chosen, self.block[1], axis=1)[:, : self.shape[-1]]
        return spread
