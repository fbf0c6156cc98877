"""The k-quants of GGUF, written again; the functions are like those of :mod:`~.encode_gguf_blocks`.

``fresh`` gives the bits of ``quantize_row_*_K_ref`` of llama.cpp's ``ggml-quants.c``: the scales of groups are searched
for (:mod:`~.encode_gguf_scales`), rounded to multiples of that of their super-block, and the elements to multiples of
these.
"""

from __future__ import annotations

import numpy as np

from lora_registry.ops.arrays import Array
from lora_registry.quantized.encoding.gguf_blocks import half_bytes, inverse
from lora_registry.quantized.encoding.gguf_scales import affine, symmetric, symmetric_by_element
from lora_registry.quantized.gguf_blocks import halves
from lora_registry.quantized.gguf_k_blocks import scales_and_minima, scales_of_q3_k

_TINY = np.float32(1e-15)  # GROUP_MAX_EPS


def fresh_q2_k(values: Array) -> Array:
    """Groups of 16 with four bits of scale and of minimum; two bits an element."""
    groups = _groups(values, 16)
    scales, minima, codes = affine(groups, np.abs(groups), 3, -0.5, 15, absolute=True)
    scale, scale_codes = _of_largest(_by_block(scales, 16), 15)
    minimum, minimum_codes = _of_largest(_by_block(minima, 16), 15)
    head = np.concatenate((scale_codes | (minimum_codes << 4), half_bytes(np.stack((scale, minimum), axis=1))), axis=1)
    return _q2(head, values, _in_order(codes, 256))


def kept_q2_k(blocks: Array, values: Array) -> Array:
    """The same with the scales and minima that are there."""
    head = np.concatenate((blocks[:, :16], blocks[:, 80:84]), axis=1)
    return _q2(head, values, np.zeros(values.shape, np.uint8))


def _q2(head: Array, values: Array, codes: Array) -> Array:
    scales = halves(head, 16) * (head[:, :16] & 15)
    minima = halves(head, 18) * (head[:, :16] >> 4)
    codes = _codes(values, scales, minima, 0, 3, codes)
    return np.concatenate((head[:, :16], _fields(codes, 2, 32), head[:, 16:]), axis=1)


def fresh_q3_k(values: Array) -> Array:
    """Groups of 16 with six bits of scale; three bits an element."""
    scales, codes = symmetric_by_element(_groups(values, 16), 4)
    inverse_scale, scale_codes = _of_outermost(_by_block(scales, 16), 32)
    scale_codes = (np.clip(scale_codes, -32, 31) + 32).astype(np.uint8)
    scale_codes[inverse_scale[:, 0] == 0] = 0
    low = (scale_codes[:, :8] & 15) | ((scale_codes[:, 8:] & 15) << 4)
    high = _fields(scale_codes >> 4, 2, 4)
    head = np.concatenate((low, high, half_bytes(inverse(inverse_scale))), axis=1)
    return _q3(head, values, _in_order(codes, 256))


def kept_q3_k(blocks: Array, values: Array) -> Array:
    """The same with the scales that are there."""
    return _q3(blocks[:, 96:], values, np.zeros(values.shape, np.uint8))


def _q3(head: Array, values: Array, codes: Array) -> Array:
    scales = halves(head, 12) * scales_of_q3_k(head[:, :12])
    codes = _codes(values, scales, None, -4, 3, codes)
    return np.concatenate((_fields(codes >> 2, 1, 32), _fields(codes & 3, 2, 32), head), axis=1)


def fresh_q4_k(values: Array) -> Array:
    """Groups of 32 with six bits of scale and of minimum; four bits an element."""
    head, codes = _six_bit_scales(values, 15, -1.0, 20)
    return _q4(head, values, codes)


def kept_q4_k(blocks: Array, values: Array) -> Array:
    """The same with the scales and minima that are there."""
    return _q4(blocks[:, :16], values, np.zeros(values.shape, np.uint8))


def _q4(head: Array, values: Array, codes: Array) -> Array:
    codes = _codes(values, *scales_and_minima(head), 0, 15, codes)
    return np.concatenate((head, _fields(codes, 4, 32)), axis=1)


def fresh_q5_k(values: Array) -> Array:
    """Groups of 32 with six bits of scale and of minimum; five bits an element."""
    head, codes = _six_bit_scales(values, 31, -0.5, 15)
    return _q5(head, values, codes)


def kept_q5_k(blocks: Array, values: Array) -> Array:
    """The same with the scales and minima that are there."""
    return _q5(blocks[:, :16], values, np.zeros(values.shape, np.uint8))


def _q5(head: Array, values: Array, codes: Array) -> Array:
    codes = _codes(values, *scales_and_minima(head), 0, 31, codes)
    return np.concatenate((head, _fields(codes >> 4, 1, 32), _fields(codes & 15, 4, 32)), axis=1)


def _six_bit_scales(values: Array, highest: int, first: float, steps: int) -> tuple[Array, Array]:
    """Of q4_k and q5_k: the first 16 bytes of each block, and the codes that the search for scales ended with."""
    groups = _groups(values, 32)
    mean = np.sqrt(np.add.reduce(groups * groups, axis=0) / np.float32(32))
    scales, minima, codes = affine(groups, mean + np.abs(groups), highest, first, steps, absolute=False)
    scale, low = _of_largest(_by_block(scales, 8), 63)
    minimum, least = _of_largest(_by_block(minima, 8), 63)
    packed = (
        low[:, :4] | ((low[:, 4:] >> 4) << 6),
        least[:, :4] | ((least[:, 4:] >> 4) << 6),
        (low[:, 4:] & 15) | ((least[:, 4:] & 15) << 4),
    )
    return np.concatenate((half_bytes(np.stack((scale, minimum), axis=1)), *packed), axis=1), _in_order(codes, 256)


def fresh_q6_k(values: Array) -> Array:
    """Groups of 16 with eight bits of scale; six bits an element."""
    scales, codes = symmetric(_groups(values, 16), 32)
    table = _by_block(scales, 16)
    inverse_scale, scale_codes = _of_outermost(table, 128)
    empty = np.abs(table).max(axis=1) < _TINY
    scale_codes = np.minimum(scale_codes, 127).astype(np.int8).view(np.uint8)
    head = np.concatenate((scale_codes, half_bytes(inverse(inverse_scale))), axis=1)
    blocks = _q6(head, values, _in_order(codes, 256))
    blocks[empty] = 0
    return blocks


def kept_q6_k(blocks: Array, values: Array) -> Array:
    """The same with the scales that are there."""
    return _q6(blocks[:, 192:], values, np.zeros(values.shape, np.uint8))


def _q6(head: Array, values: Array, codes: Array) -> Array:
    scales = halves(head, 16) * np.ascontiguousarray(head[:, :16]).view(np.int8)
    codes = _codes(values, scales, None, -32, 31, codes)
    return np.concatenate((_fields(codes & 15, 4, 64), _fields(codes >> 4, 2, 32), head), axis=1)


def _groups(values: Array, size: int) -> Array:
    """Groups side by side: (size, groups). Sums along the first axis add one element after the other, as C does."""
    return np.ascontiguousarray(values.reshape(-1, size).T)


def _in_order(codes: Array, width: int) -> Array:
    """The codes of :func:`_groups` as blocks of ``width`` elements."""
    return np.ascontiguousarray(codes.T).reshape(-1, width)


def _by_block(numbers: Array, count: int) -> Array:
    """One number a group as one row a super-block."""
    return numbers.reshape(-1, count)


def _of_largest(numbers: Array, levels: int) -> tuple[Array, Array]:
    """What the numbers of each row, none of them negative, are multiples of, and of how much: (rows,), uint8."""
    largest = np.maximum(numbers.max(axis=1), np.float32(0))
    factors = np.zeros_like(largest)
    np.divide(np.float32(levels), largest, out=factors, where=largest > 0)
    codes = np.minimum(np.rint(factors[:, np.newaxis] * numbers), levels).astype(np.uint8)
    return largest / np.float32(levels), codes


def _of_outermost(numbers: Array, levels: int) -> tuple[Array, Array]:
    """The factor that brings the number of each row that is farthest from 0 to -levels, and the rows times that."""
    where = np.abs(numbers).argmax(axis=1)[:, np.newaxis]
    outermost = np.take_along_axis(numbers, where, axis=1)
    factors = np.zeros_like(outermost)
    np.divide(np.float32(-levels), outermost, out=factors, where=outermost != 0)
    return factors, np.rint(factors * numbers)


def _codes(values: Array, scales: Array, minima: Array | None, low: int, high: int, others: Array) -> Array:
    """Codes from 0 on with the scales of groups; where a scale is 0, those of ``others``: uint8, as ``values``."""
    count = scales.shape[1]
    table = values.reshape(len(values), count, -1)
    shifted = table if minima is None else table + minima[:, :, np.newaxis]
    spread = np.broadcast_to(scales[:, :, np.newaxis], table.shape)
    codes = np.zeros_like(table)
    np.divide(shifted, spread, out=codes, where=spread != 0)
    codes = np.clip(np.rint(codes), low, high) - low
    chosen = np.where(spread != 0, codes.astype(np.uint8), others.reshape(table.shape))
    return chosen.reshape(values.shape)


def _fields(codes: Array, bits: int, run: int) -> Array:
    """The inverse of ``_planes``: for each run of bytes, the lowest fields first, then the second ones, ..."""
    fields = codes.reshape(len(codes), -1, 8 // bits, run)
    octets = np.zeros((len(codes), fields.shape[1], run), np.uint8)
    for number in range(8 // bits):
        octets |= (fields[:, :, number] & ((1 << bits) - 1)) << (bits * number)
    return octets.reshape(len(codes), -1)
