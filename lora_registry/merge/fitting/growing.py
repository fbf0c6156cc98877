"""Targets that make a table longer, and who says that it may get longer (``spec/merging.md``, section 1.2)."""

from __future__ import annotations

from dataclasses import replace

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.ops.factors import FACTORED


def rows_brought(target: Target, shape: tuple[int, ...]) -> int | None:
    """The rows of the table that ``target`` brings along whole, where they are more than those of the base.

    Args:
        target: a full one, or one with factors and a value, which stands for W (section 5.3).
        shape: of the base tensor.

    Returns:
        None where the base's rows are needed, or there are enough of them.
    """
    whole = target.kind is Kind.FULL or (target.kind in FACTORED and "value" in target.tensors)
    if not whole or target.shape is None or not shape or target.shape[1:] != shape[1:]:
        return None
    return target.shape[0] if target.shape[0] > shape[0] else None


def with_all_rows(target: Target, length: int) -> Target:
    """The same change of a table that has ``length`` rows already."""
    if target.length is None:
        return target
    assert target.shape is not None  # rows are added to a known number of them
    return replace(target, shape=(length, *target.shape[1:]), length=None)


def declares_growth(adapter: Adapter) -> bool:
    """Whether the document says that the adapter was made with more tokens than the base's tokenizer has."""
    return bool(adapter.tokenizer.get("added"))
