"""The element types of GGUF that are blocks of 32: one scale, maybe a minimum, and small integers.

Every function takes the bytes of blocks, uint8 (blocks, bytes of one), and gives float32 (blocks, elements of one).
Layouts from ggml's ``ggml-common.h``; the arithmetic is float32 in the order of ``ggml-quants.c``.
"""

from __future__ import annotations

import numpy as np

from lora_registry.ops.arrays import Array


def halves(blocks: Array, begin: int, count: int = 1) -> Array:
    """``count`` float16 numbers from byte ``begin`` of every block, as float32."""
    part = np.ascontiguousarray(blocks[:, begin : begin + 2 * count])
    result: Array = part.view("<f2").astype(np.float32)
    return result


def nibbles(octets: Array) -> Array:
    """The lower halves of all bytes along the last axis, and behind them the upper ones."""
    return np.concatenate((octets & 15, octets >> 4), axis=-1)


def _high_bits(blocks: Array, begin: int) -> Array:
    """The fifth bit of each of 32 elements: uint8, 0 or 16."""
    return np.unpackbits(blocks[:, begin : begin + 4], axis=1, bitorder="little") << 4


def q4_0(blocks: Array) -> Array:
    """Scale and 32 elements of four bits, less 8."""
    return halves(blocks, 0) * (nibbles(blocks[:, 2:]).astype(np.int8) - 8)


def q4_1(blocks: Array) -> Array:
    """Scale, minimum and 32 elements of four bits."""
    return halves(blocks, 0) * nibbles(blocks[:, 4:]) + halves(blocks, 2)


def q5_0(blocks: Array) -> Array:
    """Scale, the fifth bits, the lower four of 32 elements, less 16."""
    codes = nibbles(blocks[:, 6:]) | _high_bits(blocks, 2)
    return halves(blocks, 0) * (codes.astype(np.int8) - 16)


def q5_1(blocks: Array) -> Array:
    """Scale, minimum, the fifth bits, the lower four of 32 elements."""
    codes = nibbles(blocks[:, 8:]) | _high_bits(blocks, 4)
    return halves(blocks, 0) * codes + halves(blocks, 2)


def q8_0(blocks: Array) -> Array:
    """Scale and 32 elements of eight bits."""
    return halves(blocks, 0) * np.ascontiguousarray(blocks[:, 2:]).view(np.int8)
