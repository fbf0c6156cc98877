"""Room for what is computed between reading a run of elements and writing it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch

ELEMENT = 33
"""Bytes of the workspace for an element: four of float64, and a boolean; float32 takes half of it."""


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

    def of(self, dtype: torch.dtype, count: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Four buffers of ``dtype``, and one of booleans.

        Args:
            dtype: float32 or float64.
            count: elements of each.
        """
        numbers = [self._at(position * dtype.itemsize, dtype, count) for position in range(4)]
        return numbers, self._at(ELEMENT - 1, torch.bool, count)

    def _at(self, position: int, dtype: torch.dtype, count: int) -> torch.Tensor:
        begin = position * self.elements
        return self.memory[begin : begin + count * dtype.itemsize].view(dtype)
