"""What is no change of the base's tensors, or has no place in them: refused by name, before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import UnsupportedError, refusal
from lora_registry.format.data_rules import check_data
from lora_registry.ops.factors import FACTORED


def check_mergeable(adapter: Adapter, *, growth: bool = False) -> None:
    """Refuse an adapter that no merge can hold.

    Args:
        adapter: any.
        growth: whether the merge can add rows to a table.

    Raises:
        UnsupportedError: see :func:`check_applicable` and :func:`check_target`.
        IntegrityError, InvalidInputError: see :func:`check_applicable`.
    """
    check_applicable(adapter, "merged weights would be on always; serve it unmerged", growth=growth)
    for target in adapter:
        refuse_groups(target)


def check_applicable(adapter: Adapter, why: str, *, growth: bool = False) -> None:
    """Refuse an adapter that is not, from the first token on, a change of the tensors that the base has.

    Reads all of its data: receipts and metadata name it by its content digest, which says nothing about bytes that
    nobody has held against theirs (P-024).

    Args:
        adapter: any.
        why: what would go wrong with a gate, for the message.
        growth: whether rows can be added to a table.

    Raises:
        UnsupportedError: the adapter has a gate (P-046), or adds rows to a table that cannot grow (P-042).
        IntegrityError: its bytes are others than those that it states (R-035).
        InvalidInputError: the positions of a sparse change are out of order (R-045).
    """
    refuse_gate(adapter, why)
    for target in adapter if not growth else ():
        _refuse_growth(target)
    if findings := check_data(adapter):
        raise refusal("the adapter", findings)


def check_target(target: Target) -> None:
    """Refuse a target whose change has no place in a tensor of the base's shape.

    Raises:
        UnsupportedError: a grouped conv in PEFT's form, for which PEFT raises NotImplementedError (P-006); or
            rows behind those of the base (P-042).
    """
    refuse_groups(target)
    _refuse_growth(target)


def check_together(place: str, targets: Sequence[Target]) -> None:
    """Several targets may change one tensor only where their changes are sums, which have no order.

    Raises:
        UnsupportedError: one of several has a magnitude or a value, or is no sum.
    """
    plain = all(
        target.kind in FACTORED | {Kind.SPARSE} and not {"magnitude", "value"} & set(target.tensors)
        for target in targets
    )
    if len(targets) > 1 and not plain:
        names = " and ".join(target.name for target in targets)
        raise UnsupportedError(f"{names} both change {place}, and their changes cannot simply be added")


def refuse_gate(adapter: Adapter, why: str) -> None:
    """Refuse an adapter that is on for a part of a sequence only (P-046); ``why`` is for the message.

    Raises:
        UnsupportedError: it has a gate.
    """
    if adapter.gate:
        raise UnsupportedError(f"the adapter is switched on by tokens {list(adapter.gate)} (activated LoRA): {why}")


def refuse_groups(target: Target) -> None:
    """Refuse a grouped conv, whose dense change the base tensor has no place for (P-006).

    Raises:
        UnsupportedError: it is one.
    """
    if target.groups != 1:
        raise UnsupportedError(
            f"{target.name}: a grouped conv ({target.groups} groups) cannot be merged: its factors connect every "
            "output with every input, and the base kernel has no place for that; serve it unmerged"
        )


def _refuse_growth(target: Target) -> None:
    if target.length is not None:
        assert target.shape is not None  # rows are added to a known number of them
        raise UnsupportedError(
            f"{target.name}: adds {target.length - target.shape[0]} rows to the {target.shape[0]} of the base: only a "
            "merge into a checkpoint grows the vocabulary"
        )
