"""Numbers that are known up to a bound: what a sound arithmetic may have computed in the place of the exact result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from lora_registry.merge.proof.nearest import nearest
from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True)
class Interval:
    """Every element lies between ``low`` and ``high``, both float64 and both included."""

    low: Array
    high: Array

    @classmethod
    def around(cls, center: Array, radius: Array | float) -> Self:
        """From ``center`` minus ``radius`` to ``center`` plus ``radius``."""
        return cls(center - radius, center + radius)

    @property
    def center(self) -> Array:
        """The middle."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Array:
        """Half of the width."""
        return (self.high - self.low) / 2

    def plus(self, other: Interval, unit: float) -> Interval:
        """The sum, computed in an arithmetic that is off by at most ``unit`` times the result."""
        low, high = self.low + other.low, self.high + other.high
        return Interval(low - unit * np.abs(low), high + unit * np.abs(high))

    def times(self, factor: Array | float) -> Interval:
        """The exact product with ``factor``."""
        first, second = self.low * factor, self.high * factor
        return Interval(np.minimum(first, second), np.maximum(first, second))

    def rounded(self, dtype: str | None) -> Interval:
        """What rounding to ``dtype`` makes of it, since rounding keeps the order; itself for None."""
        return self if dtype is None else Interval(nearest(self.low, dtype), nearest(self.high, dtype))

    def holds(self, values: Array) -> Array:
        """Which of ``values`` lie within; a bound that is no number excludes only numbers."""
        unknown = np.isnan(self.low) | np.isnan(self.high)
        with np.errstate(invalid="ignore"):
            return np.asarray(((values >= self.low) & (values <= self.high)) | (unknown & np.isnan(values)))
