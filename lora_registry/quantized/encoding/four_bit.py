"""nf4 and fp4 written again, as ``quantize_4bit`` of bitsandbytes 0.50 does (``backends/default/ops.py``).

Elements are divided by the largest of their block and rounded to the nearest of the sixteen values. Where the scales
are quantized themselves, their own scales and their offset are kept: a new scale is rounded to the nearest that these
can express, and the elements are divided by what that stands for.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd

import numpy as np

from lora_registry.ops.arrays import Array
from lora_registry.quantized.encoding.encoder import Codebook, Independent, Piece, squared_error
from lora_registry.quantized.four_bit import FourBitWeight

_LEAST = np.float32(1e-38)  # of a scale that is divided by; blocks of zeros have none


class FourBitEncoder(Independent):
    """Encodes nf4 or fp4; see :class:`~lora_registry.quantized.encoding.encoder.Encoder`."""

    def __init__(self, weight: FourBitWeight) -> None:
        self._weight = weight
        self._elements = Codebook(weight.values)
        self._scales = None if weight.nested is None else Codebook(weight.nested.values)

    @property
    def name(self) -> str:
        """nf4 or fp4."""
        return self._weight.kind

    @property
    def parts(self) -> tuple[str, ...]:
        """Elements and scales."""
        return self._weight.parts[:2]

    @property
    def step(self) -> int:
        """Whole blocks and whole bytes."""
        together = self._weight.block if self._weight.block % 2 == 0 else 2 * self._weight.block
        return together // gcd(together, self._weight.shape[-1])

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows of elements; a block may go over several."""
        weight = self._weight
        count, low = wanted.size, first * weight.shape[-1] // weight.block
        blocks = _blocks(wanted.astype(np.float32, copy=False), weight.block)
        high = low + len(blocks)
        touched = (_blocks(before.astype(np.float32, copy=False), weight.block) != blocks).any(axis=1)
        start = low * weight.block // 2
        stored = weight.packed[start : start + -(-count // 2)]
        octets = np.zeros(blocks.size // 2, np.uint8)
        octets[: len(stored)] = stored
        codes = np.stack((octets >> 4, octets & 15), axis=-1).reshape(blocks.shape)

        own = weight.absmax[low:high]
        scale_codes, fresh = self._rounded(low, np.abs(blocks).max(axis=1))
        kept, kept_error = self._divided(blocks, own)
        made, made_error = self._divided(blocks, fresh)
        anew = touched & (made_error < kept_error)
        codes = np.where(anew[:, None], made, np.where(touched[:, None], kept, codes))
        scales = np.where(anew, fresh, own)
        flat = codes.reshape(-1)[: count + count % 2]
        packed = (flat[::2] << 4) | flat[1::2]
        parts = [Piece(weight.parts[0], start, packed)]
        if weight.nested is None:
            parts.append(Piece(weight.parts[1], 4 * low, scales.astype(np.float32)))
        else:
            parts.append(Piece(weight.parts[1], low, np.where(anew, scale_codes, weight.nested.codes[low:high])))
        shown = replace(weight, shape=wanted.shape, packed=packed, absmax=scales)
        return parts, shown.rows(0, len(wanted))

    def _rounded(self, low: int, scales: Array) -> tuple[Array, Array]:
        """Scales as they can be stored, and their codes where they are quantized; from block ``low`` on."""
        nested = self._weight.nested
        if nested is None or self._scales is None:
            return scales, scales
        own = nested.spread(low, low + len(scales))
        with np.errstate(divide="ignore", invalid="ignore"):  # blocks of equal scales have no scale of their own
            codes = self._scales.nearest((scales - nested.offset) / own)
        return codes, nested.values[codes] * own + nested.offset

    def _divided(self, blocks: Array, scales: Array) -> tuple[Array, Array]:
        """The codes of blocks with these scales, and how far off what they stand for is."""
        inverse = np.float32(1) / np.maximum(scales, _LEAST)
        with np.errstate(over="ignore"):
            codes = self._elements.nearest(blocks * inverse[:, None])
        return codes, squared_error(self._weight.values[codes] * scales[:, None], blocks)


def _blocks(elements: Array, size: int) -> Array:
    """Elements by blocks, of which the last is filled up with zeros: (blocks, size)."""
    flat = elements.reshape(-1)
    return np.pad(flat, (0, -flat.size % size)).reshape(-1, size)
