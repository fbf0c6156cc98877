"""What an output file is made of, by offset: runs of bytes that are copied, converted, changed or added."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from lora_registry.adapter import Kind
from lora_registry.dtypes import DTYPES
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.packed import PackedPart
from lora_registry.merge.plan import FilePlan, Part

COPIED = 1 << 20
"""Bytes of a block that is copied."""

ELEMENTS = 1 << 18
"""Elements of a block that is computed, more or less: whole rows, and at least one. 1 MB of float32."""

Cut = Callable[[Part], int]
"""How many elements a block of a tensor has, more or less: what computes it knows."""


def for_caches(part: Part) -> int:
    """As many as a core's cache takes, whatever the tensor."""
    del part
    return ELEMENTS


class Treatment(StrEnum):
    """How the bytes of a range come about."""

    HEADER = "header"
    COPY = "copy"
    CONVERT = "convert"
    MERGE = "merge"
    REQUANTIZE = "requantize"
    ADD = "add"


@dataclass(frozen=True, slots=True)
class Range:
    """A run of bytes of an output file.

    Attributes:
        treatment: how they come about.
        begin: offset in the output.
        end: one past the last byte.
        origin: offset in the base's file of the bytes that they are made from.
        origin_end: one past the last of these; equal to ``origin`` where there are none.
        part: the tensor, where the range is one.
        again: the bytes of the base belong to a tensor under another name, and are read for that too.
    """

    treatment: Treatment
    begin: int
    end: int
    origin: int
    origin_end: int
    part: Part | None = None
    again: bool = False

    @property
    def size(self) -> int:
        """Bytes in the output."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a range: what is read, computed and written in one go.

    Attributes:
        number: of the block in its file, from 0, in the order of the bytes.
        range: what it is a piece of.
        begin: offset in the output.
        end: one past the last byte.
        origin: offset in the base's file.
        origin_end: one past the last byte there.
        start: number of the first element in its tensor; 0 outside of tensors.
        stop: one past the last element.
    """

    number: int
    range: Range
    begin: int
    end: int
    origin: int
    origin_end: int
    start: int = 0
    stop: int = 0


def ranges_of(file: FilePlan, base: Checkpoint) -> tuple[Range, ...]:
    """The ranges of ``file`` in the order of its bytes; together they are the whole file.

    Neighbors that are copied from neighbors are one range.
    """
    head = base.head(file.origin)
    treatment = Treatment.COPY if file.head == head else Treatment.HEADER
    found = [Range(treatment, 0, len(file.head), 0, len(head))]
    for part in file.parts:
        range_ = _range(part, base, len(file.head))
        last = found[-1]
        plain = range_.treatment is last.treatment is Treatment.COPY and not (range_.again or last.again)
        if plain and last.origin_end == range_.origin:
            found[-1] = Range(Treatment.COPY, last.begin, range_.end, last.origin, range_.origin_end)
        elif range_.size:
            found.append(range_)
    return tuple(found)


def _range(part: Part, base: Checkpoint, data_start: int) -> Range:
    begin, end = data_start + part.entry.begin, data_start + part.entry.end
    if part.source is None:
        return Range(Treatment.ADD, begin, end, 0, 0, part)
    origin, origin_end = base.window(part.source)
    again = part.name != part.source
    if part.weight is not None:
        return Range(Treatment.REQUANTIZE, begin, end, origin, origin_end, part)
    if base.is_computed(part.source) and not part.changes:
        return Range(Treatment.CONVERT, begin, end, origin, origin_end, part, again)
    if part.changes:
        return Range(Treatment.MERGE, begin, end, origin, origin_end, part, again)
    if base.dtype(part.source) != part.entry.dtype:
        return Range(Treatment.CONVERT, begin, end, origin, origin_end, part, again)
    return Range(Treatment.COPY, begin, end, origin, origin_end, None, again)


def blocks_of(ranges: tuple[Range, ...], cut: Cut = for_caches) -> Iterator[Block]:
    """The blocks of a file, in the order of its bytes. Where they begin follows from the plan and ``cut`` alone."""
    number = 0
    for range_ in ranges:
        for block in _cut(range_, number, cut):
            yield block
            number = block.number + 1


def _cut(range_: Range, number: int, cut: Cut) -> Iterator[Block]:
    part = range_.part
    if part is None:  # bytes, whatever they are
        step = COPIED if range_.treatment is Treatment.COPY else max(1, range_.size)
        for begin in range(0, range_.size, step):
            end = min(begin + step, range_.size)
            origin_end = range_.origin + end if range_.treatment is Treatment.COPY else range_.origin_end
            yield Block(number, range_, range_.begin + begin, range_.begin + end, range_.origin + begin, origin_end)
            number += 1
        return
    elements = prod(part.entry.shape)
    written = DTYPES[part.entry.dtype].size
    read = (range_.origin_end - range_.origin) // elements
    row = row_of(part)
    step = max(1, cut(part) // row) * row
    for start in range(0, elements, step):
        stop = min(start + step, elements)
        yield Block(
            number,
            range_,
            range_.begin + start * written,
            range_.begin + stop * written,
            range_.origin + start * read,
            range_.origin + stop * read,
            start,
            stop,
        )
        number += 1


def row_of(part: Part) -> int:
    """Elements that must stay together: a row of the matrix, or matrices, that the tensor is stored as."""
    shape = part.entry.shape
    if part.weight is not None:  # bytes that are made elsewhere
        return 1
    if isinstance(part, PackedPart):
        return prod(shape[1:])
    if any(target.kind is Kind.EXPERTS for target in part.changes):
        return shape[-1]
    return prod(shape[1:]) if part.changes and part.changes[0].kind is not Kind.FULL else 1


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest block of some ranges: bytes that are read, bytes that are written, elements that are computed."""

    read: int = 0
    written: int = 0
    elements: int = 0

    def including(self, ranges: tuple[Range, ...], cut: Cut = for_caches) -> Largest:
        """The same with those of ``ranges``. A header needs no room: it is in memory as it is."""
        read, written, elements = self.read, self.written, self.elements
        for range_ in ranges:
            first = next(_cut(range_, 0, cut), None)
            if first is None or range_.treatment is Treatment.HEADER:  # data files of ONNX have an empty header
                continue
            read = max(read, first.origin_end - first.origin)
            if range_.treatment is not Treatment.COPY:
                written = max(written, first.end - first.begin)
                elements = max(elements, first.stop)
        return Largest(read, written, elements)
