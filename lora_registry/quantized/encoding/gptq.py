"""GPTQ written again, by rounding to nearest with the scales of AutoGPTQ 0.7 (``quantization/quantizer.py``).

A group from its least to its largest element, 0 among them, is divided into equal steps; where all zero points of a
weight are in the middle, it is symmetric and they stay there. The order of the inputs is kept. The parts are packed
along the inputs, so that they are held until all rows are there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_registry.ops.arrays import Array, round_to
from lora_registry.quantized.encoding.encoder import Piece
from lora_registry.quantized.encoding.groups import Affine, ColumnGroups, closer
from lora_registry.quantized.gptq import GptqWeight
from lora_registry.quantized.packing import pack, unpack

_TOGETHER = 32  # outputs: as many zero points as are sure to end with a word


class GptqEncoder:
    """Encodes GPTQ; see :class:`~lora_registry.quantized.encoding.encoder.Encoder`."""

    name = "gptq"
    step = _TOGETHER
    needs_range = False

    def __init__(self, weight: GptqWeight) -> None:
        self._weight = weight
        self._highest = (1 << weight.bits) - 1
        zeros = weight.zero_points(0, weight.shape[0])
        self._symmetric = bool((zeros == 1 << (weight.bits - 1)).all())
        self._groups = ColumnGroups(weight.groups, len(weight.scales))

    @property
    def parts(self) -> tuple[str, ...]:
        """Elements and scales, and the zero points where they are not all in the middle."""
        codes, zeros, scales = self._weight.parts[:3]
        return (codes, scales) if self._symmetric else (codes, zeros, scales)

    def prepare(self) -> None:
        """Hold all parts."""
        weight = self._weight
        self._codes, self._zeros, self._scales = weight.codes.copy(), weight.zeros.copy(), weight.scales.copy()

    def cover(self, low: float, high: float) -> None:
        """Nothing: each row has scales of its own."""

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows of outputs, which are columns of what is stored."""
        weight = self._weight
        zeros = weight.zero_points(first, last).T.astype(np.float32)
        scales = weight.scales[:, first:last].T.astype(np.float32)
        codes = unpack(weight.codes[:, first:last].T, weight.bits, weight.shape[1]).astype(np.int16)
        own = Affine(scales, zeros, codes)
        new = closer(self._groups, own, self._fresh(wanted), before, wanted, 0, self._highest)
        self._codes[:, first:last] = pack(new.codes.astype(np.uint8), weight.bits).T
        self._scales[:, first:last] = round_to(new.scales, weight.dtype).T
        if not np.array_equal(new.zeros, zeros):
            words = weight.packed_zeros(new.zeros.T.astype(np.uint8))
            begin = first // _TOGETHER * weight.bits
            self._zeros[:, begin : begin + words.shape[1]] = words
        shown = replace(weight, codes=self._codes, zeros=self._zeros, scales=self._scales)
        return [], shown.rows(first, last)

    def rest(self) -> list[Piece]:
        """All of it."""
        codes, zeros, scales = self._weight.parts[:3]
        pieces = [Piece(codes, 0, self._codes), Piece(scales, 0, self._scales)]
        return pieces if self._symmetric else [*pieces, Piece(zeros, 0, self._zeros)]

    def _fresh(self, wanted: Array) -> tuple[Array, Array]:
        """Scales and zero points for what the groups hold now."""
        rows = wanted.astype(np.float32, copy=False)
        low = np.minimum(self._groups.reduce(rows, np.minimum), np.float32(0))
        high = np.maximum(self._groups.reduce(rows, np.maximum), np.float32(0))
        if self._symmetric:
            high = np.maximum(-low, high)
            low = -high
        scales = round_to((high - low) / np.float32(self._highest), self._weight.dtype).astype(np.float32)
        if self._symmetric:
            return scales, np.full_like(scales, 1 << (self._weight.bits - 1))
        zeros = np.zeros_like(scales)
        np.divide(-low, scales, out=zeros, where=scales != 0)
        least = 1 if self._weight.first_form else 0  # kernels subtract one from each zero point as it is stored
        return scales, np.clip(np.rint(zeros), least, self._highest)
