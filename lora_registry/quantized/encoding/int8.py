"""int8 of bitsandbytes written again, as its ``int8_vectorwise_quant`` does (0.50, ``backends/default/ops.py``).

Every row is divided by its largest element and multiplied by 127, and rounded to the nearest whole number.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_registry.ops.arrays import Array
from lora_registry.quantized.encoding.encoder import Independent, Piece, squared_error
from lora_registry.quantized.int8 import UNIT, Int8Weight


class Int8Encoder(Independent):
    """Encodes int8; see :class:`~lora_registry.quantized.encoding.encoder.Encoder`."""

    name = "int8"
    step = 1

    def __init__(self, weight: Int8Weight) -> None:
        self._weight = weight

    @property
    def parts(self) -> tuple[str, ...]:
        """Elements and scales."""
        return self._weight.parts[:2]

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows of outputs, each a group."""
        weight = self._weight
        rows = wanted.astype(np.float32, copy=False)
        touched = (before != wanted).any(axis=1)
        own, fresh = weight.scales[first:last], np.abs(rows).max(axis=1)
        kept, kept_error = _divided(rows, own)
        made, made_error = _divided(rows, fresh)
        anew = touched & (made_error < kept_error)
        codes = np.where(anew[:, None], made, np.where(touched[:, None], kept, weight.codes[first:last]))
        scales = np.where(anew, fresh, own)
        pieces = [Piece(weight.parts[0], first * weight.shape[1], codes), Piece(weight.parts[1], 4 * first, scales)]
        return pieces, replace(weight, codes=codes, scales=scales).rows(0, len(codes))


def _divided(rows: Array, scales: Array) -> tuple[Array, Array]:
    """The codes of rows with these scales, and how far off what they stand for is."""
    with np.errstate(divide="ignore"):
        factors = np.where(scales > 0, np.float32(127) / scales, np.float32(0))
    codes = np.clip(np.rint(rows * factors[:, None]), -127, 127)
    return codes.astype(np.int8), squared_error(codes * (scales * UNIT)[:, None], rows)
