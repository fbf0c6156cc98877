"""What a target does to its base tensor, in torch, on the tensor as the base stores it.

The formulas stand in :mod:`lora_registry.adapter`. This is written apart from ``ops``, which merges, so that
each can prove the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_registry.adapter import LOW_RANK, Kind, Target
from lora_registry.errors import UnsupportedError
from lora_registry.runtime.names import as_torch

if TYPE_CHECKING:
    from collections.abc import Callable

    Delta = Callable[[Target, torch.Tensor, torch.Tensor], torch.Tensor]


def factors(target: Target, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of a low-rank target, in the element type and on the device of ``like``."""
    return role(target, "A", like), role(target, "B", like)


def role(target: Target, name: str, like: torch.Tensor) -> torch.Tensor:
    """The tensor in a role, in the element type and on the device of ``like``."""
    return as_torch(target.tensors[name]).to(like)


def start(target: Target, base: torch.Tensor) -> torch.Tensor:
    """What the factors are added to: the base tensor, or the value that stands in for it."""
    return role(target, "value", base) if "value" in target.tensors else base


def changed(target: Target, base: torch.Tensor) -> torch.Tensor:
    """W', the whole tensor, with the shape and layout of ``base``.

    Raises:
        UnsupportedError: a grouped convolution whose factors make no tensor of the base's shape.
    """
    if target.kind is Kind.FULL:
        return role(target, "value", base)
    if target.kind is Kind.BIAS:
        return base + target.scale * role(target, "delta", base)
    if target.kind is Kind.TOKENS:
        result = base.clone()
        result[list(target.rows)] = role(target, "value", base)
        return result
    assert target.kind in LOW_RANK
    sum_ = start(target, base) + target.scale * _product(target, base)
    if "magnitude" not in target.tensors:
        return sum_
    return sum_ * along_out(target, gain(target, base), sum_)


def gain(target: Target, base: torch.Tensor) -> torch.Tensor:
    """The factor m / ‖W + s·B·A‖ of each output, shape (out,) (arXiv 2402.09353, eq. 5).

    The norm runs over all axes but that of the outputs, as in PEFT 0.21 (``tuners/lora/dora.py``).
    """
    sum_ = start(target, base) + target.scale * _product(target, base)
    out = target.layout.index("out")
    norm = sum_.pow(2).sum(dim=[axis for axis in range(sum_.dim()) if axis != out]).sqrt()
    return role(target, "magnitude", base).flatten() / norm


def along_out(target: Target, vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``vector`` (out,) shaped to multiply ``like``, which is stored in the target's layout."""
    shape = [1] * like.dim()
    shape[target.layout.index("out")] = -1
    return vector.reshape(shape)


def _product(target: Target, base: torch.Tensor) -> torch.Tensor:
    """B · A in the base's layout."""
    A, B = factors(target, base)
    if target.kind is Kind.CONV:
        kernel = torch.einsum("or,r...->o...", B.flatten(1), A)
        if target.groups != 1 or kernel.shape != base.shape:
            raise UnsupportedError(
                f"{target.name}: the factors of this grouped convolution have no weight of their own"
            )
        return kernel
    out_in = B @ A  # (out, in), or (expert, out, in)
    return out_in if target.layout[-2:] == ("out", "in") else out_in.transpose(-1, -2)
