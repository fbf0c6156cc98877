"""As much of FlatBuffers as two small tables need: reading with every offset checked, and the sizes for writing.

A table begins with a signed offset back to its vtable, which says where each field lies; whatever is not a number
is an unsigned offset forward. Little-endian throughout (flatbuffers.dev, "Internals").
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


class BrokenBufferError(ValueError):
    """An offset or a length leads out of the buffer."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table in a buffer that may hold anything.

    Attributes:
        data: the whole buffer.
        start: where the table begins.
        fields: offset of every field from there; 0 for one that is absent.
    """

    data: memoryview
    start: int
    fields: tuple[int, ...]

    @classmethod
    def at(cls, data: memoryview, start: int) -> Table:
        """The table at ``start``.

        Raises:
            BrokenBufferError: it is not wholly inside the buffer.
        """
        vtable = start - number(data, "<i", start)
        size, length = number(data, "<H", vtable), number(data, "<H", vtable + 2)
        if size < 4 or size % 2 or start + length > len(data):
            raise BrokenBufferError("a table leaves the file")
        fields = tuple(number(data, "<H", vtable + place) for place in range(4, size, 2))
        if any(offset >= length for offset in fields):
            raise BrokenBufferError("a field lies beyond its table")
        return cls(data, start, fields)

    def integer(self, field: int) -> int:
        """The int32 in ``field``; 0 where it is absent."""
        offset = self._offset(field)
        return number(self.data, "<i", self.start + offset) if offset else 0

    def bytes(self, field: int) -> memoryview:
        """The elements of a vector of bytes, or of a string; empty where it is absent."""
        return self._vector(field, 1)

    def integers(self, field: int) -> tuple[int, ...]:
        """The elements of a vector of int64; empty where it is absent."""
        vector = self._vector(field, 8)
        return struct.unpack(f"<{len(vector) // 8}q", vector)

    def tables(self, field: int) -> tuple[Table, ...]:
        """The elements of a vector of tables; empty where it is absent."""
        vector = self._vector(field, 4)
        if not len(vector):
            return ()
        first = self._target(field) + 4
        places = (first + 4 * index for index in range(len(vector) // 4))
        return tuple(Table.at(self.data, place + number(self.data, "<I", place)) for place in places)

    def _offset(self, field: int) -> int:
        return self.fields[field] if field < len(self.fields) else 0

    def _target(self, field: int) -> int:
        place = self.start + self._offset(field)
        return place + number(self.data, "<I", place)

    def _vector(self, field: int, size: int) -> memoryview:
        if not self._offset(field):
            return self.data[:0]
        start = self._target(field)
        end = start + 4 + size * number(self.data, "<I", start)
        if end > len(self.data):
            raise BrokenBufferError("a vector leaves the file")
        return self.data[start + 4 : end]


def number(data: memoryview, form: str, place: int) -> int:
    """One number of the struct format ``form`` at ``place``.

    Raises:
        BrokenBufferError: there are not that many bytes.
    """
    if place < 0 or place + struct.calcsize(form) > len(data):
        raise BrokenBufferError("an offset leaves the file")
    found: int = struct.unpack_from(form, data, place)[0]
    return found


def table(vtable: tuple[int, ...], length: int) -> bytes:
    """A vtable whose table follows it at once: its size, the table's, the offsets of the fields."""
    return struct.pack(f"<{2 + len(vtable)}H", 4 + 2 * len(vtable), length, *vtable)


def padding(place: int, alignment: int, offset: int = 0) -> int:
    """Bytes to skip at ``place``, so that what comes ``offset`` bytes later is aligned."""
    return -(place + offset) % alignment
