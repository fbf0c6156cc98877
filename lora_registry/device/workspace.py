"""Room for what is computed between reading a run of elements and writing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

ELEMENT = 33
"""Bytes of the workspace for an element: four float32 and two float64, or four float64, and a boolean."""


@dataclass(frozen=True, slots=True)
class Workspace:
    """Buffers for the elements that are computed together.

    Attributes:
        elements: how many at most.
        memory: all of it, uint8.
    """

    elements: int
    memory: torch.Tensor

    @classmethod
    def on(cls, device: torch.device, elements: int) -> Self:
        """New memory on ``device``."""
        return cls(elements, torch.empty(ELEMENT * elements, dtype=torch.uint8, device=device))

    def of(self, dtype: torch.dtype, count: int) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        """Four buffers of ``dtype``, two of float64 (none where ``dtype`` is that) and one of booleans.

        Args:
            dtype: float32 or float64.
            count: elements of each.
        """
        size = dtype.itemsize
        narrow = [self._at(position * size, dtype, count) for position in range(4)]
        wide = [] if size == 8 else [self._at(16 + position * 8, torch.float64, count) for position in range(2)]
        return narrow, wide, self._at(ELEMENT - 1, torch.bool, count)

    def _at(self, position: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        begin = position * self.elements
        return self.memory[begin : begin + count * dtype.itemsize].view(dtype)
