"""float8 written again: every block is divided by its scale and rounded to the nearest float8.

With a scale of its own, the largest element of a block becomes the largest float8 (transformers 5.23, ``Fp8Quantize``);
where all scales of a weight are powers of two, and not all 1, so is a new one. Where one scale is for the whole weight,
it is kept while the largest element still rounds to a float8 that there is, because another would move every element.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from lora_registry.ops.arrays import Array, round_to
from lora_registry.quantized.encoding.encoder import Independent, Piece
from lora_registry.quantized.fp8 import Fp8Weight
from lora_registry.quantized.grid import Grid


class Fp8Encoder(Independent):
    """Encodes float8; see :class:`~lora_registry.quantized.encoding.encoder.Encoder`."""

    def __init__(self, weight: Fp8Weight, name: str = "fp8") -> None:
        self.name = name
        self._weight = weight
        finite = ml_dtypes.finfo(weight.values.dtype)
        self._largest = np.float32(finite.max)
        # What is half a step beyond the largest float8 still rounds to it.
        self._reach = self._largest + np.float32(2) ** np.floor(np.log2(self._largest)) * np.float32(finite.eps) / 2
        scales = weight.scales.values
        self._powers = bool((np.frexp(scales)[0] == 0.5).all() and (scales != 1).any())
        self._range = np.float32(0)

    @property
    def parts(self) -> tuple[str, ...]:
        """Elements and scales."""
        return self._weight.parts

    @property
    def step(self) -> int:
        """Whole blocks; any rows where one scale is for all."""
        return 1 if self.needs_range else self._weight.scales.step

    @property
    def needs_range(self) -> bool:
        """One scale is for all rows."""
        return self._weight.scales.is_single

    def cover(self, low: float, high: float) -> None:
        """What the one scale has to cover."""
        self._range = np.float32(max(-low, high))

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows of outputs."""
        weight = self._weight
        rows = wanted.astype(np.float32, copy=False)
        width = rows.shape[1]
        if self.needs_range:
            grid, run = Grid(rows.shape, rows.shape, weight.scales.values[:1]), (0, len(rows))
        else:
            grid, run = weight.scales, (first, last)
        own = grid.values[grid.within(*run)]
        if self.needs_range:
            kept = self._range <= np.abs(own) * self._reach
            scales = own if kept.all() else self._fresh(np.full((1, 1), self._range))
        else:
            touched = grid.reduce(*run, (before != wanted).astype(np.uint8), np.maximum) > 0
            scales = np.where(touched, self._closer(grid, run, own, rows), own)
        spread = grid.spread(*run, scales)
        alike = (before == wanted) & (spread == grid.spread(*run, own))
        codes = np.where(alike, weight.values.reshape(-1, width)[first:last], self._divided(rows, spread))
        values = round_to(np.ascontiguousarray(scales), weight.scale_dtype)
        begin = 0 if self.needs_range else grid.within(*run).start * values.shape[1] * values.itemsize
        shown = replace(weight, values=codes, scales=Grid(rows.shape, (1, 1), spread))
        pieces = [Piece(weight.parts[0], first * width, codes), Piece(weight.parts[1], begin, values)]
        return pieces, shown.rows(0, len(rows))

    def _closer(self, grid: Grid, run: tuple[int, int], own: Array, rows: Array) -> Array:
        """Of each block, its own scale or a new one, whichever comes closer."""
        fresh = self._fresh(grid.reduce(*run, np.abs(rows), np.maximum))
        errors = []
        for scales in (own, fresh):
            spread = grid.spread(*run, scales)
            difference = self._divided(rows, spread).astype(np.float32) * spread - rows
            errors.append(grid.reduce(*run, difference * difference, np.add))
        result: Array = np.where(errors[1] < errors[0], fresh, own)
        return result

    def _divided(self, rows: Array, scales: Array) -> Array:
        """The nearest float8 of each element, in range."""
        divided = np.zeros_like(rows)
        np.divide(rows, scales, out=divided, where=scales != 0)
        result: Array = np.clip(divided, -self._largest, self._largest).astype(self._weight.values.dtype)
        return result

    def _fresh(self, largest: Array) -> Array:
        """New scales for blocks by their largest elements, with the digits that they can be stored with."""
        scales = largest.astype(np.float32) / self._largest
        if self._powers:
            scales = np.exp2(np.ceil(np.log2(np.maximum(scales, np.finfo(np.float32).tiny))))
        return round_to(scales.astype(np.float32), self._weight.scale_dtype).astype(np.float32)
