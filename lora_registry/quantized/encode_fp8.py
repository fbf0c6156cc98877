"""float8 written again: every block is divided by its scale and rounded to the nearest float8.

A scale is kept while the largest element of its block is in range with it, because another one moves every element of
the block to other values and makes none of them finer. Otherwise the largest element becomes the largest float8
(transformers 5.23, ``Fp8Quantize``). Where all scales of a weight are powers of two, so are new ones.
"""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from lora_registry.ops.arrays import Array, round_to
from lora_registry.quantized.encoding import Independent, Piece
from lora_registry.quantized.fp8 import Fp8Weight
from lora_registry.quantized.grid import Grid


class Fp8Encoder(Independent):
    """Encodes float8; see :class:`~lora_registry.quantized.encoding.Encoder`."""

    name = "fp8"

    def __init__(self, weight: Fp8Weight) -> None:
        self._weight = weight
        self._largest = np.float32(ml_dtypes.finfo(weight.values.dtype).max)
        self._powers = bool((np.frexp(weight.scales.values)[0] == 0.5).all())
        self._covered: float | None = None

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
        self._covered = max(-low, high, 0.0)

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows of outputs."""
        weight, grid = self._weight, self._weight.scales
        rows = wanted.astype(np.float32, copy=False)
        width = rows.shape[1]
        if self.needs_range:
            within = slice(0, 1)
            largest = np.full((1, 1), self._covered, np.float32)
            scales = self._scales(grid.values[:1], largest)
            spread = np.broadcast_to(scales, rows.shape)
        else:
            within = grid.within(first, last)
            largest = grid.reduce(first, last, np.abs(rows), np.maximum)
            scales = self._scales(grid.values[within], largest)
            spread = grid.spread(first, last, scales)
        with np.errstate(divide="ignore", invalid="ignore"):
            divided = np.where(spread != 0, rows / spread, np.float32(0))
        codes = np.clip(divided, -self._largest, self._largest).astype(weight.values.dtype)
        stored = weight.values.reshape(-1, width)[first:last]
        alike = (before == wanted) & (spread == grid.rows(first, last))
        codes = np.where(alike, stored, codes)
        values = round_to(scales, weight.scale_dtype)
        pieces = [
            Piece(weight.parts[0], first * width, codes),
            Piece(weight.parts[1], within.start * grid.values.shape[1] * values.itemsize, values),
        ]
        shown = replace(weight, values=codes, scales=Grid((*rows.shape,), (1, 1), spread))
        return pieces, shown.rows(0, len(rows))

    def _scales(self, own: Array, largest: Array) -> Array:
        """The scales of blocks: their own where these reach far enough, else new ones, as they can be stored."""
        fresh = largest / self._largest
        if self._powers:
            fresh = np.exp2(np.ceil(np.log2(np.maximum(fresh, np.finfo(np.float32).tiny))))
        made = round_to(fresh.astype(np.float32), self._weight.scale_dtype).astype(np.float32)
        result: Array = np.where(largest <= np.abs(own) * self._largest, own, made)
        return result
