"""What a target does to its base tensor, in torch, on the tensor as the base stores it.

The formulas stand in :mod:`lora_registry.adapter`. This is written apart from ``ops``, which merges, so that
each can prove the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lora_registry.adapter import Kind, Target
from lora_registry.errors import InvalidInputError, UnsupportedError
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
        InvalidInputError: a row of tokens lies beyond the base tensor.
        UnsupportedError: a grouped convolution whose factors make no tensor of the base's shape.
    """
    match target.kind:
        case Kind.FULL:
            return role(target, "value", base)
        case Kind.BIAS:
            return base + target.scale * role(target, "delta", base)
        case Kind.SPARSE:
            index = as_torch(target.tensors["index"]).to(base.device)
            added = torch.zeros_like(base).flatten().scatter(0, index, role(target, "delta", base))
            return base + target.scale * added.reshape(base.shape)
        case Kind.TOKENS:
            if target.rows[-1] >= len(base):
                raise InvalidInputError(f"{target.name}: row {target.rows[-1]} is beyond the {len(base)} of the model")
            result = base.clone()
            result[list(target.rows)] = role(target, "value", base)
            return result
    sum_ = start(target, base) + target.scale * _change(target, base)
    if "magnitude" not in target.tensors:
        return sum_
    return sum_ * along_out(target, gain(target, base), sum_)


def gain(target: Target, base: torch.Tensor) -> torch.Tensor:
    """The factor m / ‖W + ΔW‖ of each output, shape (out,) (arXiv 2402.09353, eq. 5).

    The norm runs over all axes but that of the outputs, as in PEFT 0.21 (``tuners/lora/dora.py``).
    """
    sum_ = start(target, base) + target.scale * _change(target, base)
    out = target.layout.index("out")
    norm = sum_.pow(2).sum(dim=[axis for axis in range(sum_.dim()) if axis != out]).sqrt()
    return role(target, "magnitude", base).flatten() / norm


def along_out(target: Target, vector: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """``vector`` (out,) shaped to multiply ``like``, which is stored in the target's layout."""
    shape = [1] * like.dim()
    shape[target.layout.index("out")] = -1
    return vector.reshape(shape)


def _change(target: Target, base: torch.Tensor) -> torch.Tensor:
    """ΔW / s in the base's layout."""
    match target.kind:
        case Kind.CONV:
            return _kernel(target, base)
        case Kind.LOHA:
            out_in = _side(target, "1", base) * _side(target, "2", base)
        case Kind.LOKR:
            left, right = _side(target, "1", base), _side(target, "2", base)
            pairs = torch.einsum("ab,cd...->acbd...", left, right)
            out_in = pairs.flatten(0, 1).flatten(1, 2)
        case _:
            A, B = factors(target, base)
            out_in = B @ A  # (out, in), or (expert, out, in)
    return out_in.transpose(-1, -2) if target.layout[-2:] == ("in", "out") else out_in


def _side(target: Target, number: str, base: torch.Tensor) -> torch.Tensor:
    """One of the two tensors that a LoHa or LoKr target is composed of, (out, in, k…) as far as it has these."""
    if f"C{number}" in target.tensors:
        return role(target, f"C{number}", base)
    return torch.tensordot(role(target, f"B{number}", base), role(target, f"A{number}", base), dims=1)


def _kernel(target: Target, base: torch.Tensor) -> torch.Tensor:
    A, B = factors(target, base)
    kernel = torch.einsum("or,r...->o...", B.flatten(1), A)
    if target.groups != 1 or kernel.shape != base.shape:
        raise UnsupportedError(f"{target.name}: the factors of this grouped convolution have no weight of their own")
    return kernel
