"""Integers of a few bits, packed into larger ones."""

from __future__ import annotations

import numpy as np

from lora_registry.ops.arrays import Array


def unpack(words: Array, bits: int, count: int) -> Array:
    """Fields of ``bits`` bits that lie densely along the last axis, the first in the lowest bits.

    Args:
        words: little-endian integers; a field may begin in one and end in the next.
        bits: 1 to 8.
        count: fields of a row; what is left of its last word is padding.

    Returns:
        uint8, the shape of ``words`` but for the last axis, which has ``count`` elements.
    """
    octets = np.ascontiguousarray(words).view(np.uint8)
    if bits == 8:
        return octets[..., :count]
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        fields = (octets[..., np.newaxis] >> shifts) & np.uint8((1 << bits) - 1)
        return fields.reshape(*octets.shape[:-1], -1)[..., :count]
    spread = np.unpackbits(octets, axis=-1, bitorder="little", count=count * bits)
    return np.packbits(spread.reshape(*octets.shape[:-1], count, bits), axis=-1, bitorder="little")[..., 0]


def pack(fields: Array, bits: int) -> Array:
    """The inverse of :func:`unpack`: int32 words, padded with zeros.

    Args:
        fields: uint8, each below 2^bits.
        bits: 1 to 8.
    """
    spread = np.unpackbits(fields[..., np.newaxis], axis=-1, bitorder="little", count=bits)
    flat = spread.reshape(*fields.shape[:-1], -1)
    padding = [(0, 0)] * (flat.ndim - 1) + [(0, -flat.shape[-1] % 32)]
    return np.packbits(np.pad(flat, padding), axis=-1, bitorder="little").view("<i4")
