"""A target as the initializer stores its tensor, so that blocks of it can be changed where they lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.onnx.values import swap
from lora_registry.ops.arrays import Array, from_array, to_array
from lora_registry.ops.change import merged
from lora_registry.ops.factors import FACTORED


def as_stored(target: Target, transposed: bool, weight: Callable[[], Array]) -> Target:
    """The same change of the tensor with its two last axes swapped, where it is stored so.

    Args:
        target: the change, in the checkpoint's orientation.
        transposed: whether the initializer swaps the two last axes.
        weight: gives the tensor in the checkpoint's orientation; only called for changes that have no form of
            their own for the other one, such as rows of tokens, which then become a full value.
    """
    if not transposed or len(target.shape or (0, 0)) < 2:
        return target
    if target.kind is Kind.FULL:
        value = np.ascontiguousarray(np.swapaxes(to_array(target.tensors["value"]), -1, -2))
        return replace(target, shape=value.shape, tensors={"value": from_array(value)}, digests={})
    if target.kind in FACTORED and "value" not in target.tensors and target.shape is not None:
        kind = Kind.LINEAR if target.kind is Kind.EMBEDDING else target.kind  # the same formula for either order
        layout = (*target.layout[:-2], target.layout[-1], target.layout[-2])
        return replace(target, kind=kind, layout=layout, shape=swap(target.shape))
    value = np.ascontiguousarray(np.swapaxes(merged(target, weight()), -1, -2))
    return replace(
        target, kind=Kind.FULL, layout=(), shape=value.shape, rows=(), tensors={"value": from_array(value)}, digests={}
    )
