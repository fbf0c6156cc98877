"""Several adapters as the inputs of a batched model: stacks of factors, of which each row of a batch chooses one.

Number 0 is the base: its factors are zeros. Ranks that differ are filled up with zeros, which changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_registry.adapter import Adapter
from lora_registry.errors import UnsupportedError
from lora_registry.onnx.slots.factors import factors_for
from lora_registry.onnx.slots.manifest import Role, SlotManifest
from lora_registry.ops.arrays import Array, numpy_dtype

_ROLES: tuple[Role, Role] = ("A", "B")


def stacked(manifest: SlotManifest, adapters: Sequence[Adapter]) -> dict[str, Array]:
    """The stacks of all slots: A (n + 1, in, r) and B (n + 1, r, out), the adapters from number 1 on.

    Args:
        manifest: slots of a batched model.
        adapters: n of them, whose targets all have slots.

    Raises:
        UnsupportedError: the model is not batched, or an adapter has what no slot can hold.
        InvalidInputError: see :func:`lora_registry.onnx.slots.factors.factors_for`.
    """
    if not manifest.batched:
        raise UnsupportedError("the model is not batched: it takes one adapter at a time")
    parts = [factors_for(manifest, adapter).arrays for adapter in adapters]
    stacks: dict[str, Array] = {}
    for slot in manifest.slots.values():
        ranks = [part[slot.input("A")].shape[1] for part in parts if slot.input("A") in part]
        for role in _ROLES:
            name = slot.input(role)
            shape = slot.factor_shape(role, max(ranks, default=0))
            stack = np.zeros((len(parts) + 1, *shape), numpy_dtype(slot.dtype))
            for number, part in enumerate(parts, start=1):
                if name in part:
                    factor = part[name]
                    stack[number][tuple(slice(length) for length in factor.shape)] = factor
            stacks[name] = stack
    return stacks
