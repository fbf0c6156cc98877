"""The blocks of a reverse patch (``spec/merging.md``, section 6): what the merged files do not hold, compressed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import IO

import numpy as np

from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import IntegrityError, InvalidInputError
from lora_registry.ops.arrays import Array, numpy_dtype, round_to, widened

SLACK = 1 << 12
"""Bytes that compression may add to a block."""
_DIGEST = 32
_STEP = 1 << 14  # elements that are computed at a time


def difference(base: Array, merged: Array, target: str) -> bytearray:
    """What has to be added to the elements of ``merged`` to get those of ``base``, as it is stored, uncompressed.

    Args:
        base: bytes of the base tensor, uint8.
        merged: elements of the merged tensor, of their own type.
        target: element type of the base.
    """
    size = DTYPES[target].size
    stored = bytearray(len(base))
    planes = np.frombuffer(stored, np.uint8).reshape(size, -1)
    for start, stop in _steps(len(merged)):
        predicted = _predicted(merged[start:stop], target)
        signed = (base[start * size : stop * size].view(predicted.dtype) - predicted).view(f"<i{size}")
        folded = (signed << 1) ^ (signed >> (8 * size - 1))
        planes[:, start:stop] = folded.view(np.uint8).reshape(-1, size).T
    return stored


def restored(stored: bytes | bytearray, merged: Array, target: str) -> Array:
    """The inverse of :func:`difference`: the bytes of the base tensor, uint8."""
    size = DTYPES[target].size
    result = np.empty(len(stored), np.uint8)
    planes = np.frombuffer(stored, np.uint8).reshape(size, -1)
    for start, stop in _steps(len(merged)):
        predicted = _predicted(merged[start:stop], target)
        folded = np.ascontiguousarray(planes[:, start:stop].T).view(predicted.dtype).reshape(-1)
        one = predicted.dtype.type(1)
        added = (folded >> one) ^ (-(folded & one).view(f"<i{size}")).view(predicted.dtype)
        result[start * size : stop * size] = (predicted + added).view(np.uint8)
    return result


def _steps(count: int) -> Iterator[tuple[int, int]]:
    """Few enough elements at a time that the arrays between need no new pages."""
    for start in range(0, count, _STEP):
        yield start, min(start + _STEP, count)


def _predicted(merged: Array, target: str) -> Array:
    """The bits of the elements of ``merged`` in the type ``target``, as unsigned integers; 0 for a NaN converted."""
    unsigned = np.dtype(f"<u{DTYPES[target].size}")
    if merged.dtype == numpy_dtype(target):
        return merged.view(unsigned)
    wide = widened(merged)
    with np.errstate(all="ignore"):
        converted = round_to(wide, target) if wide.dtype != numpy_dtype(target) else wide
    return np.where(np.isnan(wide), unsigned.type(0), converted.view(unsigned))


def pack(stored: bytes | bytearray, base: bytes | memoryview) -> bytes:
    """A block: the length of what is compressed, the digest of the base bytes that come of it, and itself."""
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)  # smaller and four times faster than matching strings here
    packed = packer.compress(stored) + packer.flush()
    return len(packed).to_bytes(4, "little") + bytes.fromhex(Digest.of(base).hex) + packed


def read_block(stream: IO[bytes], length: int, name: str) -> bytes:
    """Read the next block, which makes ``length`` bytes, without unpacking it.

    Raises:
        InvalidInputError: truncated, or too large.
    """
    head = stream.read(4)
    size = int.from_bytes(head, "little") + _DIGEST
    if len(head) < 4 or size > length + SLACK + _DIGEST:
        raise InvalidInputError(f"{name}: truncated, or a block that is too large (U-004)")
    packed = stream.read(size)
    if len(packed) < size:
        raise InvalidInputError(f"{name}: truncated (U-004)")
    return packed


def unpack(packed: bytes, length: int, name: str) -> tuple[bytes, Digest]:
    """What a block holds, and the digest of the base bytes that have to come of it.

    Raises:
        InvalidInputError: it is not compressed in the way of the format, or holds other than ``length`` bytes.
    """
    unpacker = zlib.decompressobj()
    try:
        stored = unpacker.decompress(memoryview(packed)[_DIGEST:], length)
        sound = len(stored) == length and (unpacker.eof or not unpacker.decompress(unpacker.unconsumed_tail, 1))
    except zlib.error as error:
        raise InvalidInputError(f"{name}: a block that is not compressed: {error} (U-004)") from None
    if not sound or not unpacker.eof or unpacker.unused_data:
        raise InvalidInputError(f"{name}: a block of another length than its run has (U-004)")
    return stored, Digest(packed[:_DIGEST].hex())


def require_digest(found: memoryview, wanted: Digest, name: str) -> None:
    """Refuse a block that did not give what it says.

    Raises:
        IntegrityError: it did not.
    """
    if Digest.of(found) != wanted:
        raise IntegrityError(f"{name}: a block does not give the bytes that it is of (U-005)")
