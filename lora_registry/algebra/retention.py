"""What an operation kept of the change it was asked for, target by target: figures that follow from the factors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_registry.adapter import Target
from lora_registry.algebra.core import LowRank, norm
from lora_registry.algebra.slices import distance
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array, from_array, round_to


@dataclass(frozen=True, slots=True)
class Retention:
    """How far one target is from the exact result.

    Attributes:
        target: name of the base tensor.
        rank: of the new target; None for a bias.
        norm: ‖ΔW‖ of the exact result, Frobenius.
        truncation: ‖exact - truncated‖ / ‖exact‖: the discarded singular values, before anything is rounded.
        rounding: ‖truncated - written‖ / ‖exact‖: what the element type of the factors costs.
    """

    target: str
    rank: int | None
    norm: float
    truncation: float = 0.0
    rounding: float = 0.0

    @property
    def energy(self) -> float:
        """The share of ‖ΔW‖² that the truncation kept."""
        return 1 - self.truncation**2

    def to_json(self) -> dict[str, str | int | float | None]:
        """The fields by name, and the energy."""
        return {
            "target": self.target,
            "rank": self.rank,
            "norm": self.norm,
            "energy": self.energy,
            "truncation": self.truncation,
            "rounding": self.rounding,
        }


def retained(target: Target, kept: Sequence[LowRank], whole: float, left_out: float) -> Retention:
    """What was kept in a target with factors.

    Args:
        target: as it is written.
        kept: its change before it was rounded, as :func:`~lora_registry.algebra.slices.slices` gives it.
        whole: ‖ΔW‖ of the exact result, Frobenius.
        left_out: ‖exact - kept‖, Frobenius.
    """
    size = whole or norm(kept) or 1.0
    return Retention(target.name, target.rank, whole, left_out / size, distance(kept, target) / size)


def bias_of(like: Target, exact: Array, dtype: str) -> tuple[Target, Retention]:
    """A bias target of the change ``exact``, float64 (out,), rounded to ``dtype``, and what was kept.

    Raises:
        InvalidInputError: the change is not finite, or beyond the range of ``dtype``.
    """
    delta = round_to(exact, dtype)
    if not np.isfinite(delta.astype(np.float64)).all():
        raise InvalidInputError(f"{like.name}: its change is not finite, or beyond the range of {dtype}")
    size = float(np.linalg.norm(exact))
    apart = float(np.linalg.norm(delta.astype(np.float64) - exact))
    target = replace(like, tensors={"delta": from_array(delta)}, scale=1.0, digests={})
    return target, Retention(like.name, None, size, rounding=apart / (size or 1.0))


def worst(retentions: Iterable[Retention]) -> Retention | None:
    """The one with the largest truncation; None where there is none."""
    return max(retentions, key=lambda one: (one.truncation, one.rounding), default=None)
