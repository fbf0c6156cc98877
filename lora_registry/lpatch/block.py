"""What a patch holds, in compressed blocks that are unpacked one at a time and never beyond what they make."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Iterator
from typing import IO

from lora_registry.errors import InvalidInputError

BLOCK = 1 << 20
"""Bytes of the file that a block makes, but for the last of a run."""
SLACK = 1 << 14
"""Bytes that compression may add to a block."""
_LENGTH = 4  # bytes of the number before a block


def pack(stored: bytes | bytearray | memoryview, op: str) -> bytes:
    """A block of a run of the kind ``op``: the length of what is compressed, and itself.

    Bytes are deflated; so are differences, in which there are no strings to be found (``Z_RLE``). The corrections of
    a product are mostly zeros, which bzip2 stores in two thirds of what deflate takes (measured).
    """
    if op == "product":
        packed = bz2.compress(stored)
    else:
        strategy = zlib.Z_RLE if op == "difference" else zlib.Z_DEFAULT_STRATEGY
        packer = zlib.compressobj(6 if op == "difference" else 9, strategy=strategy)
        packed = packer.compress(stored) + packer.flush()
    return len(packed).to_bytes(_LENGTH, "little") + packed


def read_blocks(stream: IO[bytes], at: int, size: int, lengths: Iterator[int], name: str) -> Iterator[bytes]:
    """The blocks of one run as they are, without unpacking them.

    Args:
        stream: the patch.
        at: where they begin.
        size: bytes of all of them.
        lengths: what each of them makes.
        name: of the patch, for messages.

    Raises:
        InvalidInputError: they are not ``size`` bytes, or one is too large for what it makes.
    """
    end = at + size
    for length in lengths:
        stream.seek(at)
        packed_size = int.from_bytes(stream.read(_LENGTH), "little")
        at += _LENGTH + packed_size
        if at > end or packed_size > length + SLACK:
            raise InvalidInputError(f"{name}: a block that is too large (L-004)")
        yield stream.read(packed_size)
    if at != end:
        raise InvalidInputError(f"{name}: blocks of another size than their run says (L-004)")


def unpack(packed: bytes, op: str, length: int, name: str) -> bytes:
    """What a block holds.

    Raises:
        InvalidInputError: it is not compressed in the way of ``op``, or holds other than ``length`` bytes.
    """
    try:
        stored, sound = _bunzip(packed, length) if op == "product" else _inflate(packed, length)
    except (zlib.error, OSError, EOFError, ValueError) as error:
        raise InvalidInputError(f"{name}: a block that is not compressed: {error} (L-004)") from None
    if not sound:
        raise InvalidInputError(f"{name}: a block of another length than its run has (L-004)")
    return stored


def _inflate(packed: bytes, length: int) -> tuple[bytes, bool]:
    unpacker = zlib.decompressobj()
    stored = unpacker.decompress(packed, length)
    over = unpacker.decompress(unpacker.unconsumed_tail, 1) if not unpacker.eof else b""
    return stored, len(stored) == length and not over and unpacker.eof and not unpacker.unused_data


def _bunzip(packed: bytes, length: int) -> tuple[bytes, bool]:
    unpacker = bz2.BZ2Decompressor()
    stored = unpacker.decompress(packed, length)
    while len(stored) < length and not unpacker.eof and not unpacker.needs_input:
        stored += unpacker.decompress(b"", length - len(stored))
    over = unpacker.decompress(b"", 1) if not unpacker.eof and not unpacker.needs_input else b""
    return stored, len(stored) == length and not over and unpacker.eof and not unpacker.unused_data
