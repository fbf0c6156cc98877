"""How much of a change survived, measured on the device: :mod:`lora_registry.ops.fidelity` with sums in float64."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch

from lora_registry.ops.fidelity import Sums

SUSPECT = 5
"""Where among them it stands how many elements, or norms, may not be used."""

COUNT = 6
"""Numbers of a block: those of :class:`~lora_registry.ops.fidelity.Sums` but the last, and what is suspect."""


def add_figures(
    before: torch.Tensor,
    delta: torch.Tensor,
    error: torch.Tensor,
    unchanged: torch.Tensor,
    out: torch.Tensor,
    wide: Sequence[torch.Tensor],
) -> None:
    """Add the figures of a run of elements to ``out``.

    Args:
        before: W, flat, float32 or float64.
        delta: W' - W before it is rounded.
        error: what the rounding did to W'.
        unchanged: booleans, where W' as it is written is W.
        out: float64 (:data:`COUNT`,).
        wide: two buffers of float64, as long; not used where the others are of that type.
    """
    first, second = (delta, error) if delta.dtype == torch.float64 else wide
    base = before if before.dtype == torch.float64 else first.copy_(before)
    out[0] += torch.dot(base, base)
    if delta.dtype != torch.float64:
        first.copy_(delta)
        second.copy_(error)
    out[1] += torch.dot(first, first)
    out[2] += torch.dot(second, second)
    out[3] += torch.dot(first, second)
    out[4] += unchanged.sum()


def is_sound(told: Sequence[float]) -> bool:
    """Whether every element of a block was finite, and in the range of the type that it was rounded to.

    Infinity and NaN spread into the error; see :func:`add_figures`.
    """
    return isfinite(told[2]) and not told[SUSPECT]


def sums_of(told: Sequence[float], elements: int) -> Sums:
    """The figures of a block of ``elements`` elements as the CPU's are."""
    return Sums(told[0], told[1], told[2], told[3], int(told[4]), elements)
