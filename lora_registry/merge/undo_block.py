"""The blocks of a reverse patch (``spec/merging.md``, section 6): what the merged files do not hold, compressed."""

from __future__ import annotations

import zlib
from typing import IO

import numpy as np

from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import IntegrityError, InvalidInputError
from lora_registry.ops.arrays import Array, numpy_dtype, round_to, widened

SLACK = 1 << 12
"""Bytes that compression may add to a block."""
_DIGEST = 32


def difference(base: Array, merged: Array, target: str) -> bytes:
    """What has to be added to the elements of ``merged`` to get those of ``base``, as it is stored, uncompressed.

    Args:
        base: bytes of the base tensor, uint8.
        merged: elements of the merged tensor, of their own type.
        target: element type of the base.
    """
    predicted = _predicted(merged, target)
    signed = (base.view(predicted.dtype) - predicted).view(f"<i{predicted.itemsize}")
    bits = 8 * predicted.itemsize - 1
    folded = ((signed << 1) ^ (signed >> bits)).view(np.uint8)
    return np.ascontiguousarray(folded.reshape(-1, predicted.itemsize).T).tobytes()


def restored(stored: bytes, merged: Array, target: str) -> Array:
    """The inverse of :func:`difference`: the bytes of the base tensor, uint8."""
    predicted = _predicted(merged, target)
    planes = np.frombuffer(stored, np.uint8).reshape(predicted.itemsize, -1)
    folded = np.ascontiguousarray(planes.T).view(predicted.dtype).reshape(-1)
    one = predicted.dtype.type(1)
    added = (folded >> one) ^ (-(folded & one).view(f"<i{predicted.itemsize}")).view(predicted.dtype)
    result: Array = (predicted + added).view(np.uint8)
    return result


def _predicted(merged: Array, target: str) -> Array:
    """The bits of the elements of ``merged`` in the type ``target``, as unsigned integers; 0 for a NaN converted."""
    unsigned = np.dtype(f"<u{DTYPES[target].size}")
    if merged.dtype == numpy_dtype(target):
        return merged.view(unsigned)
    wide = widened(merged)
    with np.errstate(all="ignore"):
        converted = round_to(wide, target) if wide.dtype != numpy_dtype(target) else wide
    return np.where(np.isnan(wide), unsigned.type(0), converted.view(unsigned))


def pack(stored: bytes, base: bytes | memoryview) -> bytes:
    """A block: the length of what is compressed, the digest of the base bytes that come of it, and itself."""
    packer = zlib.compressobj(6, strategy=zlib.Z_RLE)  # smaller and four times faster than matching strings here
    packed = packer.compress(stored) + packer.flush()
    return len(packed).to_bytes(4, "little") + bytes.fromhex(Digest.of(base).hex) + packed


def read_block(stream: IO[bytes], length: int, name: str) -> tuple[bytes, Digest]:
    """Read the next block, which holds ``length`` bytes.

    Returns:
        What was stored, and the digest of the base bytes that have to come of it.

    Raises:
        InvalidInputError: truncated, too large, or not compressed in the way of the format.
    """
    head = stream.read(4 + _DIGEST)
    size = int.from_bytes(head[:4], "little")
    if len(head) < 4 + _DIGEST or size > length + SLACK:
        raise InvalidInputError(f"{name}: truncated, or a block that is too large (U-004)")
    packed = stream.read(size)
    unpacker = zlib.decompressobj()
    try:
        stored = unpacker.decompress(packed, length) if len(packed) == size else b""
        sound = len(stored) == length and (unpacker.eof or not unpacker.decompress(unpacker.unconsumed_tail, 1))
    except zlib.error as error:
        raise InvalidInputError(f"{name}: a block that is not compressed: {error} (U-004)") from None
    if not sound or not unpacker.eof or unpacker.unused_data:
        raise InvalidInputError(f"{name}: truncated, or a block of another length than its run has (U-004)")
    return stored, Digest(head[4:].hex())


def require_digest(found: memoryview, wanted: Digest, name: str) -> None:
    """Refuse a block that did not give what it says.

    Raises:
        IntegrityError: it did not.
    """
    if Digest.of(found) != wanted:
        raise IntegrityError(f"{name}: a block does not give the bytes that it is of (U-005)")
