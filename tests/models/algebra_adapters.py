"""Small random adapters of every kind that can be added up, and their changes as whole float64 matrices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import ml_dtypes  # noqa: F401  (numpy finds bfloat16 by its name)
import numpy as np

from lora_registry.adapter import Adapter, Base, Kind, Layout, Target
from lora_registry.ops.arrays import from_array, to_array

Array = np.ndarray[Any, Any]

OUT, IN, EXPERTS = 12, 10, 3


def target(
    kind: Kind = Kind.LINEAR,
    *,
    seed: int = 0,
    rank: int = 2,
    scale: float = 1.5,
    layout: Layout = ("out", "in"),
    name: str = "w",
    groups: int = 1,
    dtype: Any = np.float32,
    **more: Any,
) -> Target:
    """A target of random factors; ``rank`` is that of a group in a grouped conv."""
    random = np.random.default_rng(seed)
    match kind:
        case Kind.LINEAR | Kind.EMBEDDING:
            layout = ("in", "out") if kind is Kind.EMBEDDING else layout
            shapes, shape = {"A": (rank, IN), "B": (OUT, rank)}, (OUT, IN) if layout[0] == "out" else (IN, OUT)
        case Kind.CONV:
            layout = ("out", "in", "k", "k")
            shapes = {"A": (rank * groups, IN * groups, 3, 3), "B": (OUT, rank, 1, 1)}
            shape = (OUT, IN, 3, 3)
        case Kind.EXPERTS:
            layout = ("expert", *layout)
            shapes = {"A": (EXPERTS, rank, IN), "B": (EXPERTS, OUT, rank)}
            shape = (EXPERTS, OUT, IN) if layout[1] == "out" else (EXPERTS, IN, OUT)
        case Kind.BIAS:
            layout, shapes, shape = ("out",), {"delta": (OUT,)}, (OUT,)
        case _:
            raise AssertionError(kind)
    tensors = {role: from_array(random.standard_normal(size).astype(dtype)) for role, size in shapes.items()}
    return Target(name=name, kind=kind, layout=layout, shape=shape, tensors=tensors, scale=scale, groups=groups, **more)


def adapter(*targets: Target, **fields: Any) -> Adapter:
    """An adapter of the given targets for a base with a name."""
    return Adapter(targets=targets, base=fields.pop("base", Base(name="example/base")), **fields)


def dense(one: Target) -> Array:
    """ΔW in float64 with outputs first, by the equations of section 5: the loop over groups is section 5.1."""
    part = {role: to_array(tensor).astype(np.float64) for role, tensor in one.tensors.items()}
    if one.kind is Kind.BIAS:
        return np.asarray(part["delta"] * one.scale)
    if one.kind is Kind.CONV:
        a, b = part["A"].reshape(len(part["A"]), -1), part["B"].reshape(len(part["B"]), -1)
        outputs, ranks = len(b) // one.groups, b.shape[1]
        return np.stack([b[i] @ a[i // outputs * ranks :][:ranks] for i in range(len(b))]) * one.scale
    return np.asarray(part["B"] @ part["A"] * one.scale)


def apart(made: Array, wanted: Array) -> float:
    """‖made - wanted‖ / ‖wanted‖, Frobenius."""
    return float(np.linalg.norm(made - wanted) / np.linalg.norm(wanted))


def weighted(arrays: Iterable[Array], weights: Iterable[float]) -> Array:
    """Σ wᵢ·Xᵢ."""
    return np.asarray(sum(weight * array for array, weight in zip(arrays, weights, strict=True)))
