"""One run of elements, made: widened, changed, rounded once, and measured."""

from __future__ import annotations

import torch

from lora_registry.device.change import Change
from lora_registry.device.elements import beyond, write_rounded
from lora_registry.device.figures import SUSPECT, add_figures
from lora_registry.device.workspace import Workspace


def make_run(
    change: Change | None,
    start: int,
    stored: torch.Tensor,
    rounded: torch.Tensor,
    figures: torch.Tensor,
    workspace: Workspace,
) -> None:
    """Make the elements from ``start`` on.

    Args:
        change: what is done to them; None only converts.
        start: number of the first element in its tensor.
        stored: W, flat, whole rows, of any float type; no more than the workspace has room for.
        rounded: where W' goes, as long, of any float type; may be ``stored`` itself.
        figures: float64, to which those of the run are added; see :func:`~lora_registry.device.figures.add_figures`.
        workspace: room.
    """
    compute = _type(change, stored)
    (before, wanted, delta, kept), unchanged = workspace.of(compute, len(stored))
    before.copy_(stored)
    if change is None:
        wanted.copy_(before)
        delta.zero_()
    else:
        change.write(start, before, wanted, delta, figures[SUSPECT])
    clamped = beyond(wanted, rounded.dtype)
    if clamped is not None:
        figures[SUSPECT] += clamped
    write_rounded(wanted, rounded)
    kept.copy_(rounded)
    torch.eq(kept, before, out=unchanged)
    kept -= wanted  # from here on, the error of the rounding
    add_figures(before, delta, kept, unchanged, figures)


def _type(change: Change | None, stored: torch.Tensor) -> torch.dtype:
    """Of the computation: that of the change; a conversion needs no more than what it reads."""
    if change is not None:
        return change.dtype
    return torch.float64 if stored.dtype == torch.float64 else torch.float32


def computed_in(read: torch.dtype, written: torch.dtype) -> torch.dtype:
    """The type in which W' is computed: float64 for W of F64 and for W' of F32 and F64, float32 otherwise."""
    return torch.float64 if torch.float64 in (read, written) or written == torch.float32 else torch.float32
