"""Whole numbers with a scale and a zero point for each group: what GPTQ, AWQ and compressed-tensors have in common.

Element = scale · (code - zero). With a scale and a zero point, the code is the nearest in range; both are found in the
two ways of :mod:`~lora_registry.quantized.encoding.encoder`. The calibration that made the codes which are there
(Frantar et al. 2022 weigh errors by activations) is not repeated: codes of groups that change are rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lora_registry.ops.arrays import Array
from lora_registry.quantized.grid import Grid


class Groups(Protocol):
    """Which elements of some rows share a scale."""

    def reduce(self, rows: Array, ufunc: np.ufunc) -> Array:
        """One number for each group: two axes."""

    def spread(self, numbers: Array) -> Array:
        """One number for each group, for each element."""


class ColumnGroups:
    """Groups of inputs, the same in every row, in any order.

    Args:
        groups: number of the group of each input, (in,).
        count: how many there are; those without an input have the number 0.
    """

    def __init__(self, groups: Array, count: int) -> None:
        self._groups = groups
        self._count = count
        self._order = np.argsort(groups, kind="stable")
        self._present, self._starts = np.unique(groups[self._order], return_index=True)

    def reduce(self, rows: Array, ufunc: np.ufunc) -> Array:
        """(rows, groups)."""
        result = np.zeros((len(rows), self._count), rows.dtype)
        result[:, self._present] = ufunc.reduceat(rows[:, self._order], self._starts, axis=1)
        return result

    def spread(self, numbers: Array) -> Array:
        """As many columns as there are inputs."""
        result: Array = numbers[:, self._groups]
        return result


class GridGroups:
    """Blocks of some rows of a grid, which begin and end with these."""

    def __init__(self, grid: Grid, first: int, last: int) -> None:
        self._grid = grid
        self._run = first, last

    def reduce(self, rows: Array, ufunc: np.ufunc) -> Array:
        """(rows of blocks, blocks side by side)."""
        return self._grid.reduce(*self._run, rows, ufunc)

    def spread(self, numbers: Array) -> Array:
        """(rows, columns)."""
        return self._grid.spread(*self._run, numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """Scales and zero points, one for each group, and the codes of the elements.

    Attributes:
        scales: float32, with the digits that they are stored with.
        zeros: float32, whole numbers but in ONNX models.
        codes: int16.
    """

    scales: Array
    zeros: Array
    codes: Array


def closer(
    groups: Groups, own: Affine, fresh: tuple[Array, Array], before: Array, wanted: Array, low: int, high: int
) -> Affine:
    """Encode what was changed.

    Args:
        groups: which elements share a scale.
        own: what is stored.
        fresh: scales and zero points that the scheme's quantizer would choose.
        before: what is stored stands for.
        wanted: what it should stand for.
        low: the least code.
        high: the largest.
    """
    touched = groups.reduce((before != wanted).astype(np.uint8), np.maximum) > 0
    rows = wanted.astype(np.float32, copy=False)
    kept, kept_error = divided(groups, rows, own.scales, own.zeros, low, high)
    made, made_error = divided(groups, rows, *fresh, low, high)
    anew = touched & (made_error < kept_error)
    spread_anew, spread_touched = groups.spread(anew), groups.spread(touched)
    codes = np.where(spread_anew, made, np.where(spread_touched, kept, own.codes))
    return Affine(np.where(anew, fresh[0], own.scales), np.where(anew, fresh[1], own.zeros), codes)


def divided(groups: Groups, rows: Array, scales: Array, zeros: Array, low: int, high: int) -> tuple[Array, Array]:
    """The nearest codes in range with these scales and zero points, and the squared error of each group."""
    spread, zero = groups.spread(scales), groups.spread(zeros)
    codes = np.zeros_like(rows)
    np.divide(rows, spread, out=codes, where=spread != 0)
    whole = np.rint(zero)
    codes = np.clip(np.rint(codes + (zero - whole)) + whole, low, high)
    difference = (codes - zero) * spread - rows
    return codes.astype(np.int16), groups.reduce(difference * difference, np.add)
