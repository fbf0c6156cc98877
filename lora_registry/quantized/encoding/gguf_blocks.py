"""The element types of GGUF that are blocks of 32, written again.

Every type has two functions. ``fresh`` takes values, float32 (blocks, 32), and gives blocks as llama.cpp's reference
makes them (``quantize_row_*_ref`` of ``ggml-quants.c``), bit by bit. ``kept`` takes blocks too, and gives them with the
scales that they have and the codes that come closest to the values.
"""

from __future__ import annotations

import numpy as np

from lora_registry.ops.arrays import Array
from lora_registry.quantized.gguf_blocks import halves


def half_bytes(numbers: Array) -> Array:
    """Numbers, (blocks,) or (blocks, n), as float16: uint8 (blocks, 2 n)."""
    stored = numbers.reshape(len(numbers), -1).astype("<f2")
    return stored.view(np.uint8)


def inverse(numbers: Array) -> Array:
    """1 / x, and 0 of 0."""
    result: Array = np.zeros_like(numbers)
    np.divide(np.float32(1), numbers, out=result, where=numbers != 0)
    return result


def _outermost(values: Array) -> Array:
    """Of each block, the value that is farthest from 0, the first of several: (blocks, 1)."""
    where = np.abs(values).argmax(axis=1)
    return np.take_along_axis(values, where[:, np.newaxis], axis=1)


def _nearest(values: Array, scales: Array, minima: Array | np.float32, low: int, high: int) -> Array:
    """Codes from ``low`` to ``high`` whose multiples of the scales, plus the minima, come closest: int8."""
    codes: Array = np.clip(np.rint((values - minima) * inverse(scales)), low, high)
    return codes.astype(np.int8)


def _truncated(numbers: Array, highest: int) -> Array:
    result: Array = np.minimum(numbers.astype(np.int8), highest).astype(np.uint8)
    return result


def _nibbles(codes: Array) -> Array:
    """Four bits of each: the first half of a block below the second."""
    half = codes.shape[1] // 2
    result: Array = (codes[:, :half] & 15) | ((codes[:, half:] & 15) << 4)
    return result


def _fifths(codes: Array) -> Array:
    """The fifth bit of each code: (blocks, 4)."""
    return np.packbits((codes >> 4) & 1, axis=1, bitorder="little")


def fresh_q4_0(values: Array) -> Array:
    """Scale and 32 elements of four bits, less 8."""
    scales = _outermost(values) / np.float32(-8)
    return _q4(half_bytes(scales), _truncated(values * inverse(scales) + np.float32(8.5), 15))


def kept_q4_0(blocks: Array, values: Array) -> Array:
    """The same with the scale that is there."""
    return _q4(blocks[:, :2], (_nearest(values, halves(blocks, 0), np.float32(0), -8, 7) + 8).astype(np.uint8))


def fresh_q4_1(values: Array) -> Array:
    """Scale, minimum and 32 elements of four bits."""
    head, codes = _affine(values, 15)
    return _q4(head, _truncated(codes, 15))


def kept_q4_1(blocks: Array, values: Array) -> Array:
    """The same with the scale and minimum that are there."""
    return _q4(blocks[:, :4], _nearest(values, halves(blocks, 0), halves(blocks, 2), 0, 15).astype(np.uint8))


def fresh_q5_0(values: Array) -> Array:
    """Scale, the fifth bits, the lower four of 32 elements, less 16."""
    scales = _outermost(values) / np.float32(-16)
    return _q5(half_bytes(scales), _truncated(values * inverse(scales) + np.float32(16.5), 31))


def kept_q5_0(blocks: Array, values: Array) -> Array:
    """The same with the scale that is there."""
    return _q5(blocks[:, :2], (_nearest(values, halves(blocks, 0), np.float32(0), -16, 15) + 16).astype(np.uint8))


def fresh_q5_1(values: Array) -> Array:
    """Scale, minimum, the fifth bits, the lower four of 32 elements."""
    head, codes = _affine(values, 31)
    return _q5(head, codes.astype(np.uint8))


def kept_q5_1(blocks: Array, values: Array) -> Array:
    """The same with the scale and minimum that are there."""
    return _q5(blocks[:, :4], _nearest(values, halves(blocks, 0), halves(blocks, 2), 0, 31).astype(np.uint8))


def fresh_q8_0(values: Array) -> Array:
    """Scale and 32 elements of eight bits."""
    scales = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    scaled = values * inverse(scales)
    codes = np.trunc(np.abs(scaled) + np.float32(0.5))  # C's roundf: halves away from 0
    whole = np.abs(scaled) - np.trunc(np.abs(scaled))
    codes = np.where(whole < np.float32(0.5), np.trunc(np.abs(scaled)), codes)  # 0.49999997 + 0.5 is 1 in float32
    return _q8(half_bytes(scales), np.copysign(codes, scaled).astype(np.int8))


def kept_q8_0(blocks: Array, values: Array) -> Array:
    """The same with the scale that is there."""
    return _q8(blocks[:, :2], _nearest(values, halves(blocks, 0), np.float32(0), -128, 127))


def _affine(values: Array, levels: int) -> tuple[Array, Array]:
    """Scale and minimum of blocks as they are stored, and codes plus a half, yet to be cut off."""
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    scales = (high - low) / np.float32(levels)
    return half_bytes(np.concatenate((scales, low), axis=1)), (values - low) * inverse(scales) + np.float32(0.5)


def _q4(head: Array, codes: Array) -> Array:
    return np.concatenate((head, _nibbles(codes)), axis=1)


def _q5(head: Array, codes: Array) -> Array:
    return np.concatenate((head, _fifths(codes), _nibbles(codes)), axis=1)


def _q8(head: Array, codes: Array) -> Array:
    return np.concatenate((head, codes.view(np.uint8)), axis=1)
