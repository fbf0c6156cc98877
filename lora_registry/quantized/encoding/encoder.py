"""What every encoder has in common: a changed weight goes back into the tensors that it was computed from.

A group is what shares a scale. A group that a change leaves alone keeps its bytes. Any other is encoded in two ways,
with the scale that it has and with the one that the scheme's own quantizer would give it, and the way whose values are
closer to the wanted ones (the sum of the squared differences) is taken; the scale that is there wins a draw. One scale
for all of a weight is kept while every value rounds to a code that there is (spec/merging.md, Q-002 to Q-004).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """A run of bytes of a stored tensor.

    Attributes:
        part: name of the stored tensor.
        begin: offset in it of the first byte.
        data: the bytes: an array of any type, in row-major order.
    """

    part: str
    begin: int
    data: Array


class Encoder(Protocol):
    """Encodes one weight, some rows at a time, by any number of threads.

    Rows are counted as :class:`~lora_registry.quantized.weight.QuantizedWeight` does.
    """

    @property
    def name(self) -> str:
        """What the elements are called in a receipt: ``nf4``, ``gptq``, ``Q4_K``."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the stored tensors that it writes; the others of the weight stay as they are."""

    @property
    def step(self) -> int:
        """Rows that belong together: what is encoded begins at a multiple of this, and ends at one or at the end."""

    @property
    def needs_range(self) -> bool:
        """Whether :meth:`cover` must be called first: one scale is for all rows."""

    def prepare(self) -> None:
        """Make room; called once, before anything is encoded."""

    def cover(self, low: float, high: float) -> None:
        """Take notice of the smallest and the largest value that there will be."""

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Encode the rows from ``first`` to before ``last``.

        Args:
            first: a multiple of :attr:`step`.
            last: another, or the number of rows.
            before: what the stored rows stand for, rounded to the dtype of the weight; float, (last - first, width).
            wanted: what they should stand for, finite, of the same type and shape.

        Returns:
            Bytes that are known now, and what the encoded rows stand for: float32, unrounded, of the same shape.
        """

    def rest(self) -> list[Piece]:
        """Bytes that are known only now that every row was encoded."""


class Independent:
    """For encoders whose rows need nothing of other rows."""

    @property
    def needs_range(self) -> bool:
        """They do not."""
        return False

    def prepare(self) -> None:
        """Nothing."""

    def cover(self, low: float, high: float) -> None:
        """Nothing."""

    def rest(self) -> list[Piece]:
        """Nothing."""
        return []


def squared_error(values: Array, wanted: Array) -> Array:
    """The sum of the squared differences along the last axis."""
    difference = values - wanted
    result: Array = np.einsum("...i,...i->...", difference, difference)
    return result


_FEW = 31  # bounds


class Codebook:
    """Numbers that elements are rounded to.

    Args:
        values: float32, in any order; of equal ones, the first counts.
    """

    def __init__(self, values: Array) -> None:
        ascending, self._order = np.unique(values, return_index=True)
        self._bounds = (ascending[1:] + ascending[:-1]) / np.float32(2)
        self._order = self._order.astype(np.uint8)

    def nearest(self, numbers: Array) -> Array:
        """The code of the nearest value of each number, uint8; of two that are as near, the one of the lower value."""
        if len(self._bounds) > _FEW:
            result: Array = self._order[np.searchsorted(self._bounds, numbers)]
            return result
        place = np.zeros(numbers.shape, np.uint8)  # counting is eight times as fast as searching among sixteen
        for bound in self._bounds:
            place += numbers > bound
        counted: Array = self._order[place]
        return counted
