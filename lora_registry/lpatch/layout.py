"""Which bytes of one side come from where on the other: the plan of a patch, before anything is compressed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_registry.lpatch.block import BLOCK
from lora_registry.lpatch.places import ModelFiles, Place
from lora_registry.lpatch.recipes import Recipe
from lora_registry.lpatch.runs import Op
from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of a file that are made in one way.

    Attributes:
        op: how, as in :class:`~lora_registry.lpatch.runs.Run`.
        file: the file that they are of.
        offset: where they begin in it.
        length: how many there are.
        source: file of the other side; empty for a literal.
        source_offset: where its bytes begin.
        word: bytes of a word, of a difference.
        dtype: element type, of a product.
        recipe: of a product.
    """

    op: Op
    file: str
    offset: int
    length: int
    source: str = ""
    source_offset: int = 0
    word: int = 1
    dtype: str = ""
    recipe: Recipe | None = None


def mapped(paths: Mapping[str, Path]) -> dict[str, Array]:
    """The bytes of files by name, mapped; an empty file cannot be."""
    return {
        name: np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
        for name, path in paths.items()
    }


class Layout:
    """How the files of one side are made of those of the other.

    Args:
        made: the side that is made.
        source: the other one.
        recipes: initializer of ``made`` to its recipe and to the initializer of ``source``.
    """

    def __init__(self, made: ModelFiles, source: ModelFiles, recipes: Mapping[str, tuple[str, Recipe]]) -> None:
        self._made, self._source, self._recipes = made, source, recipes
        self._bytes, self._others = mapped(made.paths), mapped(source.paths)

    def pieces(self, file: str) -> list[Piece]:
        """All bytes of ``file`` in order, as few pieces as there can be."""
        return list(_joined(self._pieces(file)))

    def _pieces(self, file: str) -> Iterator[Piece]:
        position, anchor = 0, self._counterpart(file)
        size = len(self._bytes[file])
        inside = sorted(
            (place.offset, place.end, name) for name, place in self._made.places.items() if place.file == file
        )
        for offset, end, name in inside:
            if offset < position:
                continue  # its bytes, or some of them, are another tensor's
            if offset > position:
                yield self._gap(file, position, offset - position, anchor)
            yield self._tensor(name, self._made.places[name])
            position = end
            partner = self._source.places.get(self._partner(name))
            anchor = (partner.file, partner.end) if partner is not None else None
        if position < size:
            yield self._gap(file, position, size - position, anchor)

    def _partner(self, name: str) -> str:
        return self._recipes[name][0] if name in self._recipes else name

    def _counterpart(self, file: str) -> tuple[str, int] | None:
        """The file of the other side that has the same part in its model, from its first byte."""
        number = list(self._made.paths).index(file)
        others = list(self._source.paths)
        return (others[number], 0) if number < len(others) else None

    def _gap(self, file: str, offset: int, length: int, anchor: tuple[str, int] | None) -> Piece:
        """Bytes of no tensor: those at the same place behind the same tensor of the other side, or new ones."""
        if anchor is not None:
            there = self._others[anchor[0]][anchor[1] : anchor[1] + length]
            if np.array_equal(there, self._bytes[file][offset : offset + length]):
                return Piece("copy", file, offset, length, *anchor)
        return Piece("literal", file, offset, length)

    def _tensor(self, name: str, place: Place) -> Piece:
        partner = self._source.places.get(self._partner(name))
        if partner is None or (partner.length, partner.dtype) != (place.length, place.dtype):
            return Piece("literal", place.file, place.offset, place.length)
        if self._equal(place, partner):
            return Piece("copy", place.file, place.offset, place.length, partner.file, partner.offset)
        _, recipe = self._recipes.get(name, ("", None))
        return Piece(
            "difference" if recipe is None else "product",
            place.file,
            place.offset,
            place.length,
            partner.file,
            partner.offset,
            place.word,
            "" if recipe is None else place.dtype,
            recipe,
        )

    def _equal(self, place: Place, other: Place) -> bool:
        one, two = self._bytes[place.file][place.offset : place.end], self._others[other.file][other.offset : other.end]
        step = 16 * BLOCK
        return all(
            np.array_equal(one[start : start + step], two[start : start + step]) for start in range(0, len(one), step)
        )


def _joined(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Copies from one place to the next become one, and so do literals."""
    last: Piece | None = None
    for piece in pieces:
        if last is not None and _continues(last, piece):
            last = Piece(last.op, last.file, last.offset, last.length + piece.length, last.source, last.source_offset)
            continue
        if last is not None:
            yield last
        last = piece
    if last is not None:
        yield last


def _continues(last: Piece, piece: Piece) -> bool:
    if last.op != piece.op:
        return False
    if last.op == "literal":
        return True
    return last.op == "copy" and (last.source, last.source_offset + last.length) == (piece.source, piece.source_offset)
