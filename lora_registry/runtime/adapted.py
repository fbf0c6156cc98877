"""A loaded model with an adapter beside its weights, not in them: the reference that merges are proved against.

Where a module of a known type holds the target, a forward hook adds s·B(A·x) to what the module gives; the
weight stays as it is. Everything else (experts, biases, whole tensors, rows, unknown modules) is computed
once and put in the parameter's place until the adapter is taken off.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch.nn import functional

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import ConflictError, UnsupportedError
from lora_registry.ops.mergeable import check_applicable
from lora_registry.ops.tied import TiedPolicy, check_policy, policy_for
from lora_registry.runtime.change import changed, factors, gain, start
from lora_registry.runtime.names import named_tensors
from lora_registry.runtime.resolve import resolve

Hook = Callable[[Any, tuple[Any, ...], torch.Tensor], torch.Tensor]


class Adapted:
    """An adapter on a model, from construction to :meth:`remove` (or the end of a ``with`` block).

    Args:
        module: changed in place, and restored.
        adapter: what to put on.
        tied: what a target on one of several tied parameters changes.

    Raises:
        InvalidInputError: a target matches no tensor of the model, or one of another shape.
        UsageError: there is no such policy for tied tensors.
        ConflictError: a tensor is tied, and ``tied`` is ``error``.
        UnsupportedError: the adapter has a gate or grows the vocabulary, or a target cannot be computed beside the
            weights.
    """

    def __init__(self, module: Any, adapter: Adapter, *, tied: TiedPolicy = "untie") -> None:
        check_policy(tied)
        check_applicable(adapter, "beside these weights it would be on always")
        self._undo: list[Callable[[], None]] = []
        self._unused: set[str] = set()
        names = resolve(adapter.targets, module)
        others = _ties(module, adapter.targets, names, tied)
        try:
            with torch.no_grad():
                for target in adapter.targets:
                    self._put(module, names[target.name], target)
                    for name in others[target.name]:
                        owner, attribute = _owner(module, name)
                        self._replace(owner, attribute, changed(target, getattr(owner, attribute)))
        except BaseException:
            self.remove()
            raise

    @property
    def unused(self) -> tuple[str, ...]:
        """Targets whose module has not run since: the model does not use it, or only reads its weight."""
        return tuple(sorted(self._unused))

    def remove(self) -> None:
        """Take the adapter off; the model is as it was."""
        while self._undo:
            self._undo.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _put(self, module: Any, name: str, target: Target) -> None:
        owner, attribute = _owner(module, name)
        base = getattr(owner, attribute)
        hook = _hook(owner, target) if attribute == "weight" else None
        if hook is None:
            self._replace(owner, attribute, changed(target, base))
            return
        if "value" in target.tensors:
            self._replace(owner, attribute, start(target, base))
        self._unused.add(target.name)

        def used(owner: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            self._unused.discard(target.name)
            return hook(owner, inputs, output)

        self._undo.append(owner.register_forward_hook(used).remove)

    def _replace(self, owner: Any, attribute: str, value: torch.Tensor) -> None:
        before = getattr(owner, attribute)
        if value.shape != before.shape:
            raise UnsupportedError(f"a tensor of shape {list(value.shape)} cannot stand in for {list(before.shape)}")
        is_parameter = isinstance(before, torch.nn.Parameter)
        setattr(owner, attribute, torch.nn.Parameter(value, requires_grad=False) if is_parameter else value)
        self._undo.append(lambda: setattr(owner, attribute, before))


def _owner(module: Any, name: str) -> tuple[Any, str]:
    path, _, attribute = name.rpartition(".")
    return module.get_submodule(path), attribute


def _ties(module: Any, targets: tuple[Target, ...], names: dict[str, str], tied: TiedPolicy) -> dict[str, list[str]]:
    """Target name to the other names of its tensor that must change with it; rows of tokens always do (P-008)."""
    tensors = named_tensors(module)
    result = {}
    for target in targets:
        name = names[target.name]
        others = [other for other, tensor in tensors.items() if tensor is tensors[name] and other != name]
        policy = policy_for(target, tied)
        if others and policy == "error":
            raise ConflictError(f"{target.name} is tied to {others[0]}; say whether to untie them or to change both")
        if policy == "both" and set(others) & set(names.values()):
            raise UnsupportedError(f"{target.name} and {others[0]} are one tensor, and the adapter changes each")
        result[target.name] = others if policy == "both" else []
    return result


def _hook(owner: Any, target: Target) -> Hook | None:
    """The hook that adds the target's share to the output of ``owner``; None where its type is not known.

    The exact type counts: a subclass may compute otherwise, or have its weight read by its parent.
    """
    from transformers.pytorch_utils import Conv1D

    kind, module_type = target.kind, type(owner)
    if kind is Kind.LINEAR and module_type in {torch.nn.Linear, Conv1D}:
        return _linear(owner, target)
    if kind is Kind.EMBEDDING and module_type is torch.nn.Embedding:
        return _embedding(owner, target)
    if kind is Kind.CONV and module_type in _CONVOLUTIONS:
        return _convolution(owner, target)
    if isinstance(owner, (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)):
        raise UnsupportedError(f"{target.name}: a transposed convolution stores its channels in another order")
    return None


_CONVOLUTIONS: dict[Any, Callable[..., torch.Tensor]] = {
    torch.nn.Conv1d: functional.conv1d,
    torch.nn.Conv2d: functional.conv2d,
    torch.nn.Conv3d: functional.conv3d,
}


def _linear(owner: Any, target: Target) -> Hook:
    A, B = factors(target, owner.weight)
    g = gain(target, owner.weight) if "magnitude" in target.tensors else None

    def hook(owner: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        share = target.scale * functional.linear(functional.linear(inputs[0], A), B)
        if g is None:
            return output + share
        bias = 0 if owner.bias is None else owner.bias
        return g * (output - bias + share) + bias

    return hook


def _embedding(owner: Any, target: Target) -> Hook:
    A, B = factors(target, owner.weight)
    g = gain(target, owner.weight) if "magnitude" in target.tensors else None

    def hook(owner: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        result = output + target.scale * functional.linear(functional.embedding(inputs[0], A.T), B)
        return result if g is None else g * result

    return hook


def _convolution(owner: Any, target: Target) -> Hook | None:
    """B is a 1×1 convolution after A. PEFT groups B alone, over an A that sees every channel: no kernel equals it."""
    weight = owner.weight
    A, B = factors(target, weight)
    groups = owner.in_channels // A.shape[1]
    if groups != 1 and target.groups == 1:
        return None  # A of the group's width, B over all: as a kernel it is plain, as two convolutions it is not
    convolve = _CONVOLUTIONS[type(owner)]
    g = None
    if "magnitude" in target.tensors:
        g = gain(target, weight).reshape(-1, *[1] * (weight.dim() - 2))

    def hook(owner: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        x, padding = inputs[0], owner.padding
        if owner.padding_mode != "zeros":
            x, padding = _padded(owner, x), 0
        inner = convolve(x, A, None, owner.stride, padding, owner.dilation, groups)
        result = output + target.scale * convolve(inner, B, groups=target.groups)
        if g is None:
            return result
        bias = 0 if owner.bias is None else owner.bias.reshape(-1, *[1] * (weight.dim() - 2))
        return g * (result - bias) + bias

    return hook


def _padded(owner: Any, x: torch.Tensor) -> torch.Tensor:
    """``x`` padded as a convolution with a padding mode other than zeros pads it."""
    if isinstance(owner.padding, str):
        raise UnsupportedError(f"a convolution padded {owner.padding_mode!r} and {owner.padding!r} at once")
    sides = [side for amount in reversed(owner.padding) for side in (amount, amount)]
    return functional.pad(x, sides, mode=owner.padding_mode)
