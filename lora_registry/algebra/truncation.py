"""How much of a matrix to keep: a rank, a share of its energy, or what stands above a noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Json
from lora_registry.errors import UsageError
from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True)
class Truncation:
    """What may be left out. Directions that cannot be told from zero always are; one direction always stays.

    Attributes:
        rank: keep at most so many directions.
        energy: keep the fewest directions that hold this share of ‖ΔW‖² (Frobenius); 1 is all of it.

    Raises:
        UsageError: both are given, or one is out of range.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is not None and self.energy is not None:
            raise UsageError("a rank or an energy to keep, not both")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"no change has rank {self.rank}: it is 1 at least")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise UsageError(f"{self.energy:g} is no share of the energy: above 0, and 1 at most")

    def __bool__(self) -> bool:
        return self.rank is not None or self.energy is not None

    def to_json(self) -> dict[str, Json]:
        """What was asked for, by name; empty where nothing was."""
        asked: dict[str, Json] = {"rank": self.rank, "energy": self.energy}
        return {name: value for name, value in asked.items() if value is not None}

    def keep(self, values: Array, total: float, floor: float = 0.0) -> int | None:
        """How many of the largest singular values stay.

        Args:
            values: singular values, descending; all of them, or the first ones.
            total: the sum of the squares of all.
            floor: those at or below this are noise.

        Returns:
            None where more values are needed to tell: the energy is not reached, or the last one is above the floor
            and no rank bounds the number. At least 1 otherwise.
        """
        if self.rank is not None:
            above = int(np.count_nonzero(values > floor))
            return max(1, min(self.rank, above)) if min(self.rank, above + 1) <= len(values) else None
        if self.energy is not None and self.energy < 1:
            enough = np.cumsum(values**2) >= self.energy * total
            return int(np.argmax(enough)) + 1 if enough.any() else None
        above = int(np.count_nonzero(values > floor))
        return max(1, above) if above < len(values) else None
