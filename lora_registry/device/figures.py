"""How much of a change survived, measured on the device: :mod:`lora_registry.ops.fidelity` summed in float64."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import torch

from lora_registry.ops.fidelity import Sums

SUSPECT = 5
"""Where among them it stands how many elements, or norms, may not be used."""

COUNT = 6
"""Numbers of a block: those of :class:`~lora_registry.ops.fidelity.Sums` but the last, and what is suspect."""


_CHUNK = 4096
"""Elements that are summed in the type of the computation; the sums of chunks are added in float64."""


def add_figures(
    before: torch.Tensor, delta: torch.Tensor, error: torch.Tensor, unchanged: torch.Tensor, out: torch.Tensor
) -> None:
    """Add the figures of a run of elements to ``out``.

    Args:
        before: W, flat, float32 or float64; is overwritten.
        delta: W' - W before it is rounded.
        error: what the rounding did to W'.
        unchanged: booleans, where W' as it is written is W.
        out: float64 (:data:`COUNT`,).
    """
    out[0] += _square(before)
    out[1] += _square(delta)
    out[2] += _square(error)
    whole, rest = _chunks(torch.mul(delta, error, out=before))
    out[3] += whole.sum(dim=1).sum(dtype=torch.float64) + rest.sum(dtype=torch.float64)
    out[4] += unchanged.sum()


def _square(vector: torch.Tensor) -> torch.Tensor:
    """‖vector‖², of no axes. Each chunk takes one pass, and nothing of the vector's size is made."""
    whole, rest = _chunks(vector)
    norms = torch.linalg.vector_norm(whole, dim=1).double()
    return norms.square().sum() + torch.linalg.vector_norm(rest).double().square()


def _chunks(vector: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of :data:`_CHUNK` elements, and what is left."""
    whole = len(vector) // _CHUNK * _CHUNK
    return vector[:whole].view(-1, _CHUNK), vector[whole:]


def is_sound(told: Sequence[float]) -> bool:
    """Whether every element of a block was finite, and in the range of the type that it was rounded to.

    Infinity and NaN spread into the error; see :func:`add_figures`.
    """
    return isfinite(told[2]) and not told[SUSPECT]


def sums_of(told: Sequence[float], elements: int) -> Sums:
    """The figures of a block of ``elements`` elements as the CPU's are."""
    return Sums(told[0], told[1], told[2], told[3], int(told[4]), elements)
