"""sha256 digests, written ``sha256:<64 lower-case hexadecimal digits>`` everywhere.

One algorithm: OCI registries need sha256, and hashing is not the bottleneck (``spec/decisions/0001``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

_PREFIX = "sha256:"
_GRAMMAR = re.compile(rf"{_PREFIX}[0-9a-f]{{64}}", re.ASCII)

CHUNK = 1 << 20  # bytes read at a time; larger does not hash faster


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The sha256 of some bytes. ``str(Digest.parse(text)) == text`` for every valid text."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read ``sha256:<hex>``.

        Raises:
            ValueError: the text does not follow the grammar (upper case does not).
        """
        if not cls.is_well_formed(text):
            raise ValueError(f"not a digest of the form sha256:<64 hex digits>: {text!r}")
        return cls(text[len(_PREFIX) :])

    @staticmethod
    def is_well_formed(text: str) -> bool:
        """Whether :meth:`parse` would read ``text``."""
        return _GRAMMAR.fullmatch(text) is not None

    @classmethod
    def of(cls, *parts: bytes | bytearray | memoryview) -> Digest:
        """Digest of the concatenation of ``parts``."""
        return cls.of_chunks(parts)

    @classmethod
    def of_chunks(cls, chunks: Iterable[bytes | bytearray | memoryview]) -> Digest:
        """Digest of a stream of chunks."""
        state = hashlib.sha256()
        for chunk in chunks:
            state.update(chunk)
        return cls(state.hexdigest())

    @classmethod
    def of_stream(cls, stream: BinaryIO) -> Digest:
        """Digest of everything that is left in an open binary file."""
        return cls.of_chunks(iter(lambda: stream.read(CHUNK), b""))

    @classmethod
    def of_file(cls, path: str | PathLike[str]) -> Digest:
        """Digest of a file's bytes."""
        with open(path, "rb") as stream:
            return cls.of_stream(stream)

    @property
    def short(self) -> str:
        """The first twelve hexadecimal digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{_PREFIX}{self.hex}"
