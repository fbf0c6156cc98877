"""AWQ written again, by rounding to nearest with the scales of AutoAWQ 0.2 (``pseudo_quantize_tensor``).

A group from its least to its largest element is divided into fifteen steps. The scaling of inputs by which AWQ protects
what matters lies in the weights of the layer before, and is not touched. The parts are packed along the outputs with
the inputs as rows, so that they are held until all rows of the weight are there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_registry.ops.arrays import Array, round_to
from lora_registry.quantized.awq import AwqWeight, outputs, words
from lora_registry.quantized.encoding.encoder import Piece
from lora_registry.quantized.encoding.groups import Affine, ColumnGroups, closer

_TOGETHER = 8  # outputs of a word
_HIGHEST = 15
_LEAST = np.float32(1e-5)  # what a range is at least, in AutoAWQ


class AwqEncoder:
    """Encodes AWQ; see :class:`~lora_registry.quantized.encoding.encoder.Encoder`."""

    name = "awq"
    step = _TOGETHER
    needs_range = False

    def __init__(self, weight: AwqWeight) -> None:
        self._weight = weight
        count, inputs = len(weight.scales), weight.shape[1]
        self._groups = ColumnGroups(np.arange(inputs) // (inputs // count), count)

    @property
    def parts(self) -> tuple[str, ...]:
        """All of them."""
        return self._weight.parts

    def prepare(self) -> None:
        """Hold all parts."""
        weight = self._weight
        self._codes, self._zeros, self._scales = weight.codes.copy(), weight.zeros.copy(), weight.scales.copy()

    def cover(self, low: float, high: float) -> None:
        """Nothing: each row has scales of its own."""

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows of outputs, which are columns of what is stored."""
        weight = self._weight
        own = Affine(
            weight.scales[:, first:last].T.astype(np.float32),
            outputs(weight.zeros, first, last).astype(np.float32),
            outputs(weight.codes, first, last),
        )
        new = closer(self._groups, own, self._fresh(wanted), before, wanted, 0, _HIGHEST)
        columns = slice(first // _TOGETHER, last // _TOGETHER)
        self._codes[:, columns] = words(new.codes)
        self._zeros[:, columns] = words(new.zeros)
        self._scales[:, first:last] = round_to(new.scales, weight.dtype).T
        shown = replace(weight, codes=self._codes, zeros=self._zeros, scales=self._scales)
        return [], shown.rows(first, last)

    def rest(self) -> list[Piece]:
        """All of it."""
        stored = (self._codes, self._zeros, self._scales)
        return [Piece(name, 0, array) for name, array in zip(self._weight.parts, stored, strict=True)]

    def _fresh(self, wanted: Array) -> tuple[Array, Array]:
        """Scales and zero points for what the groups hold now."""
        rows = wanted.astype(np.float32, copy=False)
        low, high = self._groups.reduce(rows, np.minimum), self._groups.reduce(rows, np.maximum)
        scales = np.maximum(high - low, _LEAST) / np.float32(_HIGHEST)
        zeros = np.clip(-np.rint(low / scales), 0, _HIGHEST)
        return round_to(scales, self._weight.dtype).astype(np.float32), zeros
