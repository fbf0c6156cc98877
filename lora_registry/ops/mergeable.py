"""What can be served beside the weights and never merged into them."""

from __future__ import annotations

from lora_registry.adapter import Adapter, Target
from lora_registry.errors import UnsupportedError


def check_mergeable(adapter: Adapter) -> None:
    """Refuse an adapter that no merge can hold, before anything is computed or written.

    Raises:
        UnsupportedError: the adapter has a gate (P-046), or see :func:`check_target`.
    """
    refuse_gate(adapter, "merged weights would be on always; serve it unmerged")
    for target in adapter:
        check_target(target)


def refuse_gate(adapter: Adapter, why: str) -> None:
    """Refuse an adapter that is not on from the first token.

    Args:
        adapter: any.
        why: what would go wrong here, for the message.

    Raises:
        UnsupportedError: the adapter has a gate.
    """
    if adapter.gate:
        raise UnsupportedError(f"the adapter is switched on by tokens {list(adapter.gate)} (activated LoRA): {why}")


def check_target(target: Target) -> None:
    """Refuse a target whose change has no place in a tensor of the base's shape.

    Raises:
        UnsupportedError: a grouped conv in PEFT's form, for which PEFT raises NotImplementedError (P-006); or
            rows behind those of the base (P-042).
    """
    if target.groups != 1:
        raise UnsupportedError(
            f"{target.name}: a grouped conv ({target.groups} groups) cannot be merged: its factors connect every "
            "output with every input, and the base kernel has no place for that; serve it unmerged"
        )
    if target.length is not None:
        assert target.shape is not None  # rows are added to a known number of them
        raise UnsupportedError(
            f"{target.name}: adds {target.length - target.shape[0]} rows to the {target.shape[0]} of the base: a merge "
            "that grows the vocabulary is not supported"
        )
