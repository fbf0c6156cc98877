"""Differences of bits: what has to be added to the words of one array to get those of another.

Elements are taken as unsigned integers. The difference of two floats that are near is a small number, and from it
either of the two gives the other, whatever they are: infinities, NaN, both zeros.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lora_registry.ops.arrays import Array

WIDTHS = (1, 2, 4, 8)
"""Bytes that a word can have."""

_STEP = 1 << 14  # words at a time, few enough that the arrays between need no new pages


def folded(wanted: Array, predicted: Array) -> bytearray:
    """``wanted`` - ``predicted`` as it is stored, uncompressed.

    Args:
        wanted: words, unsigned.
        predicted: as many of the same type.

    Returns:
        Each difference modulo the range of the words, signed and folded (0, -1, 1, -2, …), its bytes apart: first
        the least significant ones of all.
    """
    width = wanted.dtype.itemsize
    stored = bytearray(wanted.nbytes)
    planes = np.frombuffer(stored, np.uint8).reshape(width, -1)
    for start, stop in _steps(len(wanted)):
        signed = (wanted[start:stop] - predicted[start:stop]).view(f"<i{width}")
        numbers = (signed << 1) ^ (signed >> (8 * width - 1))
        planes[:, start:stop] = numbers.view(np.uint8).reshape(-1, width).T
    return stored


def unfolded(stored: bytes | bytearray, known: Array, *, subtract: bool = False) -> Array:
    """``known`` plus the differences in ``stored``, or minus them.

    Args:
        stored: as :func:`folded` gives it.
        known: words, unsigned, as many as there are differences.
        subtract: take the differences away, which gives ``predicted`` where ``known`` is ``wanted``.
    """
    word = known.dtype
    result = np.empty(len(known), word)
    planes = np.frombuffer(stored, np.uint8).reshape(word.itemsize, -1)
    one = word.type(1)
    for start, stop in _steps(len(known)):
        numbers = np.ascontiguousarray(planes[:, start:stop].T).view(word).reshape(-1)
        signed = (numbers >> one) ^ (-(numbers & one).view(f"<i{word.itemsize}")).view(word)
        if subtract:
            np.subtract(known[start:stop], signed, out=result[start:stop])
        else:
            np.add(known[start:stop], signed, out=result[start:stop])
    return result


def _steps(count: int) -> Iterator[tuple[int, int]]:
    for start in range(0, count, _STEP):
        yield start, min(start + _STEP, count)
