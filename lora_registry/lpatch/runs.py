"""How the bytes of a file come about from those of the other side: runs, and the products that they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from lora_registry.adapter import Json
from lora_registry.dtypes import DTYPES
from lora_registry.lpatch.block import BLOCK

Op = Literal["copy", "difference", "product", "literal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How the next bytes of a file are made.

    Attributes:
        op: ``copy`` takes bytes of a file of the other side; ``difference`` takes words of one and adds what the
            patch holds, or on reverting subtracts it; ``product`` adds a product to elements of one, or subtracts
            it, rounds, and adds what the patch holds; ``literal`` takes what the patch holds.
        length: bytes that are made.
        file: name of the file of the other side.
        offset: where its bytes begin; there are ``length`` of them.
        width: bytes of a word, of a difference.
        dtype: type of the elements, of a product.
        product: number of the product.
        at: where the blocks begin in the patch.
        size: bytes of the blocks.
    """

    op: Op
    length: int
    file: str = ""
    offset: int = 0
    width: int = 0
    dtype: str = ""
    product: int = 0
    at: int = 0
    size: int = 0

    @property
    def word(self) -> int:
        """Bytes of a word of what the blocks hold; 1 where these are bytes."""
        return self.width or (DTYPES[self.dtype].size if self.dtype else 1)

    def lengths(self) -> Iterator[int]:
        """What each block makes."""
        for start in range(0, self.length, BLOCK):
            yield min(BLOCK, self.length - start)

    def to_json(self) -> Json:
        """The run as a JSON object, with the members that its ``op`` has."""
        record: dict[str, Json] = {"op": self.op, "length": self.length}
        if self.op != "literal":
            record |= {"file": self.file, "offset": self.offset}
        if self.op == "difference":
            record |= {"width": self.width}
        if self.op == "product":
            record |= {"dtype": self.dtype, "product": self.product}
        if self.op != "copy":
            record |= {"at": self.at, "size": self.size}
        return record


MEMBERS = {
    "copy": {"op", "length", "file", "offset"},
    "difference": {"op", "length", "file", "offset", "width", "at", "size"},
    "product": {"op", "length", "file", "offset", "dtype", "product", "at", "size"},
    "literal": {"op", "length", "at", "size"},
}
"""The members of a run, by its ``op``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """Where a patch holds the factors of a product: (rank, rows), then (rank, columns), row-major, little-endian.

    Attributes:
        rows: of the matrix.
        columns: of the matrix.
        rank: terms of the sum.
        scale: what the sum is multiplied by.
        dtype: float type of the factors.
        at: where they begin in the patch.
    """

    rows: int
    columns: int
    rank: int
    scale: float
    dtype: str
    at: int

    @property
    def size(self) -> int:
        """Bytes of both."""
        return self.rank * (self.rows + self.columns) * DTYPES[self.dtype].size

    def to_json(self) -> Json:
        """The record as a JSON object."""
        return {
            "rows": self.rows,
            "columns": self.columns,
            "rank": self.rank,
            "scale": self.scale,
            "dtype": self.dtype,
            "at": self.at,
        }
