"""The k-quants of GGUF: super-blocks of 256 elements whose blocks have quantized scales of their own.

The functions are like those of :mod:`~lora_registry.quantized.gguf_blocks`, and so are their sources.
"""

from __future__ import annotations

import numpy as np

from lora_registry.ops.arrays import Array
from lora_registry.quantized.gguf_blocks import halves


def _planes(octets: Array, bits: int, run: int) -> Array:
    """Elements whose neighbors are bytes apart: for each run of bytes all lowest fields, then all second ones, ...

    Args:
        octets: uint8, (blocks, bytes).
        bits: of a field.
        run: bytes that go together.

    Returns:
        uint8, (blocks, bytes · 8 / bits).
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, np.newaxis]
    fields = (octets.reshape(len(octets), -1, 1, run) >> shifts) & np.uint8((1 << bits) - 1)
    return fields.reshape(len(octets), -1)


def _scaled(scales: Array, codes: Array) -> Array:
    """Elements times the scale of their block: scales (super-blocks, blocks), codes (super-blocks, 256)."""
    count = scales.shape[1]
    result: Array = scales[:, :, np.newaxis] * codes.reshape(len(codes), count, -1)
    return result


def q2_k(blocks: Array) -> Array:
    """16 bytes of scale (low) and minimum (high), 64 bytes of two-bit elements, the two scales of these."""
    scale, minimum = halves(blocks, 80), halves(blocks, 82)
    codes = _planes(blocks[:, 16:80], 2, 32)
    low = _scaled(scale * (blocks[:, :16] & 15), codes)
    result: Array = low - (minimum * (blocks[:, :16] >> 4))[:, :, np.newaxis]
    return result.reshape(len(blocks), -1)


def q3_k(blocks: Array) -> Array:
    """32 bytes of third bits, 64 of the lower two, 12 bytes of sixteen six-bit scales, the scale of these.

    Where the third bit is not set, 4 is taken off.
    """
    codes = _planes(blocks[:, 32:96], 2, 32).astype(np.int8)
    codes -= 4 * (1 - _planes(blocks[:, :32], 1, 32)).astype(np.int8)
    return _scaled(halves(blocks, 108) * scales_of_q3_k(blocks[:, 96:108]), codes).reshape(len(blocks), -1)


def scales_of_q3_k(octets: Array) -> Array:
    """Sixteen scales of six bits in twelve bytes: int8."""
    low, high = octets[:, :8], _planes(octets[:, 8:], 2, 4)
    scales: Array = np.concatenate((low & 15, low >> 4), axis=1) | (high << 4)
    return scales.astype(np.int8) - np.int8(32)


def scales_and_minima(blocks: Array) -> tuple[Array, Array]:
    """Of q4_k and q5_k: eight blocks' scales and minima, six bits each in twelve bytes from the fifth on."""
    first, second, rest = (blocks[:, begin : begin + 4] for begin in (4, 8, 12))
    scales = np.concatenate((first & 63, (rest & 15) | ((first >> 6) << 4)), axis=1)
    minima = np.concatenate((second & 63, (rest >> 4) | ((second >> 6) << 4)), axis=1)
    return halves(blocks, 0) * scales, halves(blocks, 2) * minima


def q4_k(blocks: Array) -> Array:
    """Scale and minimum, those of the blocks, 128 bytes of four-bit elements."""
    scales, minima = scales_and_minima(blocks)
    low = _scaled(scales, _planes(blocks[:, 16:144], 4, 32))
    return (low - minima[:, :, np.newaxis]).reshape(len(blocks), -1)


def q5_k(blocks: Array) -> Array:
    """Scale and minimum, those of the blocks, 32 bytes of fifth bits, 128 of the lower four."""
    scales, minima = scales_and_minima(blocks)
    codes = _planes(blocks[:, 48:176], 4, 32) | (_planes(blocks[:, 16:48], 1, 32) << 4)
    return (_scaled(scales, codes) - minima[:, :, np.newaxis]).reshape(len(blocks), -1)


def q6_k(blocks: Array) -> Array:
    """128 bytes of the lower four bits, 64 of the upper two, sixteen scales of eight bits, the scale of these."""
    codes = _planes(blocks[:, :128], 4, 64) | (_planes(blocks[:, 128:192], 2, 32) << 4)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _scaled(halves(blocks, 208) * scales, codes.astype(np.int8) - 32).reshape(len(blocks), -1)
