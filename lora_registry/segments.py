"""How the output axis of a fused base tensor is put together (spec section 5.5).

A base may store several maps in one tensor: queries, keys and values, or gate and up projection. Shapes do
not tell their order, nor whether they are interleaved, nor which rotary convention the rows of a head are
in; two bases with equal shapes then need different factors. *Segments* say it once, for whoever moves a
target to a base that stores its rows in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RopeOrder = Literal["halves", "pairs"]


@dataclass(frozen=True, slots=True)
class Rope:
    """The order of the rows of a head under rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    Attributes:
        head: rows of one head.
        order: ``halves``, where row i rotates with row i + rotary / 2 (transformers), or ``pairs``, where
            row 2i rotates with row 2i + 1 (Meta's checkpoints, and GGUF files of the llama family).
        rotary: rows of a head that rotate, the first ones; even.
    """

    head: int
    order: RopeOrder
    rotary: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One of the maps that a fused tensor holds.

    Attributes:
        name: what it is, such as ``q`` or ``gate``.
        length: its outputs.
        rope: the order of its rows within a head, where it is rotated.
    """

    name: str
    length: int
    rope: Rope | None = None


@dataclass(frozen=True, slots=True)
class Segments:
    """The output axis of a fused tensor: ``interleave`` equal blocks, each with a share of every segment in turn.

    Attributes:
        parts: the segments in the order in which a block holds them.
        interleave: number of blocks: 1 where the segments follow each other whole; the number of key-value
            groups in Megatron's fused attention; the length of a segment where single rows alternate.
    """

    parts: tuple[Segment, ...]
    interleave: int = 1

    @property
    def length(self) -> int:
        """Outputs of all segments together."""
        return sum(part.length for part in self.parts)

    def rows(self) -> dict[str, list[int]]:
        """Name of a segment to the rows of the fused axis that are its rows 0, 1, 2 ...

        Row i of a segment of length L that begins at s in a block of length n lies in block b = i // (L/G),
        at b · n + s + i mod (L/G), with G the number of blocks.
        """
        block = self.length // self.interleave
        found: dict[str, list[int]] = {}
        start = 0
        for part in self.parts:
            share = part.length // self.interleave
            found[part.name] = [index * block + start + row for index in range(self.interleave) for row in range(share)]
            start += share
        return found
