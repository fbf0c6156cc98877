"""Adapters for the checkpoints of ``golden_vectors``, and what else these hold."""

from __future__ import annotations

import numpy as np

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.ops.arrays import from_array

OTHER = {"n.weight": from_array(np.arange(24, dtype=np.float16).reshape(4, 6))}


def lora(name: str, shape: tuple[int, ...], size: float = 0.1) -> Adapter:
    """A change of rank 2 to one matrix."""
    rng = np.random.default_rng(1)
    factors = {
        "A": from_array((rng.standard_normal((2, shape[1])) * size).astype(np.float32)),
        "B": from_array((rng.standard_normal((shape[0], 2)) * size).astype(np.float32)),
    }
    target = Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=shape, scale=0.5, tensors=factors)
    return Adapter(targets=(target,))


def change(adapter: Adapter) -> np.ndarray:
    """s·B·A in float64."""
    tensors = adapter.targets[0].tensors
    a, b = (
        np.frombuffer(tensors[role].data, np.float32).reshape(tensors[role].shape).astype(np.float64) for role in "AB"
    )
    return adapter.targets[0].scale * (b @ a)
