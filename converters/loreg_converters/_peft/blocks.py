"""Block-diagonal LoRA (``use_bdlora``): one factor of a module holds the blocks of its diagonal alone, stacked.

``BlockDiagonalLinear`` of PEFT 0.21.2 (tuners/lora/variants.py) stores n blocks of (rows / n, columns / n) below each
other, (rows, columns / n); merged and run it is the matrix with these on its diagonal and zeros elsewhere. With the
zeros written out both factors are those of a plain LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lora_registry.adapter import Json, Tensor
from lora_registry.dtypes import DTYPES

FIELDS = frozenset({"target_modules_bd_a", "target_modules_bd_b", "nblocks", "match_strict"})
"""Every field of ``BdLoraConfig``."""

MOST = 256
"""Blocks that a factor may hold: one for each device that serves it. The zeros are so many times its size."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which factors hold blocks.

    Attributes:
        count: how many blocks a factor holds.
        of_a: texts, any of which a module's path has in it whose A holds blocks.
        of_b: the same of B.
    """

    count: int
    of_a: tuple[str, ...]
    of_b: tuple[str, ...]

    @classmethod
    def parse(cls, value: Mapping[str, Json]) -> Blocks | str:
        """The blocks that ``use_bdlora`` says, or what is wrong with it."""
        if unknown := sorted(value.keys() - FIELDS):
            return f"unknown fields {', '.join(unknown)}"
        count = value.get("nblocks", 1)
        if type(count) is not int or not 0 < count <= MOST:
            return f"nblocks is {count!r}, not from 1 to {MOST}"
        patterns = []
        for field in ("target_modules_bd_a", "target_modules_bd_b"):
            names = value.get(field) or []
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                return f"{field} is no list of texts"
            patterns.append(tuple(str(name) for name in names))
        return cls(count, patterns[0], patterns[1])

    def of(self, module: str) -> Literal["A", "B"] | None:
        """The factor of ``module`` that holds blocks.

        Raises:
            ValueError: both would; PEFT refuses to make such a module.
        """
        a, b = (any(text in module for text in texts) for texts in (self.of_a, self.of_b))
        if a and b:
            raise ValueError("the texts of use_bdlora choose its A and its B")
        return "A" if a else "B" if b else None

    def fit(self, stacked: Tensor) -> bool:
        """Whether the rows of a factor are those of so many blocks."""
        return len(stacked.shape) == 2 and stacked.shape[0] % self.count == 0 < stacked.shape[0]

    def diagonal(self, stacked: Tensor) -> Tensor:
        """The matrix with the blocks of ``stacked`` (rows, columns / n) on its diagonal: (rows, columns)."""
        rows, width = stacked.shape
        unsigned = f"u{DTYPES[stacked.dtype].size}"  # all bits of a zero are zero in every float type
        blocks = np.frombuffer(stacked.data, unsigned).reshape(self.count, rows // self.count, width)
        whole = np.zeros((self.count, rows // self.count, self.count, width), unsigned)
        index = np.arange(self.count)
        whole[index, :, index] = blocks
        return Tensor(stacked.dtype, (rows, self.count * width), whole.tobytes())
