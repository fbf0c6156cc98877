"""The signs that a probe certificate weighs a matrix with: eight streams a side, out of sha256 (spec section 11.1).

Whoever has sha256 gets the same signs, in any language, for any number of rows and columns, and from any place
on. They are hashed in chunks that are kept, because the tensors of one model share their widths.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Literal, TypeAlias

import numpy as np

from lora_registry.ops.arrays import Array

Side: TypeAlias = Literal["left", "right"]

STREAMS = 8
"""Numbers of a certificate for each component: one for each pair of streams."""

_DIGEST = 256  # signs of one sha256
_CHUNK = 64 * _DIGEST  # signs hashed together: 16 KiB for the eight streams
_POSITIONS = 4096  # looked up together; each may lie in a chunk of its own


def signs(side: Side, start: int, stop: int) -> Array:
    """The signs of the places ``start`` to ``stop``: float64 of shape (8, stop - start), each 1 or -1."""
    first = start // _CHUNK
    chunks = [_chunk(side, number) for number in range(first, max(first + 1, -(-stop // _CHUNK)))]
    begin = start - first * _CHUNK
    packed = np.concatenate(chunks, axis=1)[:, begin // 8 : -(-(stop - first * _CHUNK) // 8)]
    bits = np.unpackbits(packed, axis=1, bitorder="little")[:, begin % 8 : begin % 8 + stop - start]
    return 1.0 - 2.0 * bits


def signs_at(side: Side, places: Array) -> Array:
    """The signs of single places, in any order: float64 of shape (8, len(places)), each 1 or -1."""
    found = np.empty((STREAMS, len(places)))
    for start in range(0, len(places), _POSITIONS):
        block = places[start : start + _POSITIONS]
        numbers, which = np.unique(block // _CHUNK, return_inverse=True)
        chunks = np.stack([_chunk(side, int(number)) for number in numbers])
        inside = block % _CHUNK
        bits = chunks[which, :, inside // 8] >> (inside % 8).astype(np.uint8)[:, None] & 1
        found[:, start : start + _POSITIONS] = 1.0 - 2.0 * bits.T
    return found


@lru_cache(maxsize=1024)
def _chunk(side: Side, number: int) -> Array:
    """One chunk of the eight streams: uint8 of shape (8, 2048), the signs as bits, the least significant first."""
    digests = range(number * _CHUNK // _DIGEST, (number + 1) * _CHUNK // _DIGEST)
    streams = [
        b"".join(hashlib.sha256(b"loreg-probe-v1/%s/%d/%d" % (side.encode(), stream, n)).digest() for n in digests)
        for stream in range(STREAMS)
    ]
    return np.stack([np.frombuffer(stream, dtype=np.uint8) for stream in streams])
