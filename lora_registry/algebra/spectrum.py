"""The singular values of a target's change, and what follows from them: its norm and its stable rank."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Target
from lora_registry.algebra.core import singular_values
from lora_registry.algebra.slices import slices
from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """What the singular values of a change say.

    Attributes:
        values: float64, descending; of all experts or groups together.
    """

    values: Array

    @property
    def norm(self) -> float:
        """‖ΔW‖, Frobenius."""
        return float(np.linalg.norm(self.values))

    @property
    def stable_rank(self) -> float:
        """‖ΔW‖² / σ₁² (Rudelson and Vershynin 2007): how many directions carry the change; 0 where there is none."""
        largest = float(self.values.max(initial=0.0))
        return (self.norm / largest) ** 2 if largest else 0.0


def spectrum(target: Target) -> Spectrum:
    """The spectrum of a target with factors A and B, from these alone.

    Raises:
        InvalidInputError: a factor is not finite.
    """
    return Spectrum(np.sort(np.concatenate([singular_values(matrix) for matrix in slices(target)]))[::-1])
