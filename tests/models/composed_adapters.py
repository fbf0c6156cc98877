"""Random targets of the kinds that need a feature: LoHa, LoKr, sparse."""

from __future__ import annotations

import numpy as np

from lora_registry.adapter import Kind, Layout, Target
from lora_registry.ops.arrays import Array, from_array

KERNELS: tuple[Layout, ...] = ((), (), ("out", "in"), ("out", "in", "k"), ("out", "in", "k", "k"))


def loha(name: str, shape: tuple[int, ...], *, layout: Layout | None = None, size: float = 0.3) -> Target:
    """Ranks 2 and 3."""
    out, inner, kernel, layout = _axes(shape, layout)
    random = np.random.default_rng(len(name))
    shapes = {"A1": (2, inner, *kernel), "B1": (out, 2), "A2": (3, inner, *kernel), "B2": (out, 3)}
    return _target(name, Kind.LOHA, layout, shape, {role: size * random.normal(size=s) for role, s in shapes.items()})


def lokr(name: str, shape: tuple[int, ...], *, layout: Layout | None = None, size: float = 0.5) -> Target:
    """The first side is whole, of two outputs and as many inputs as divide; the second is a product of rank 3."""
    out, inner, kernel, layout = _axes(shape, layout)
    random = np.random.default_rng(len(name))
    shapes = {"C1": (2, 2), "A2": (3, inner // 2, *kernel), "B2": (out // 2, 3)}
    return _target(name, Kind.LOKR, layout, shape, {role: size * random.normal(size=s) for role, s in shapes.items()})


def sparse(name: str, shape: tuple[int, ...]) -> Target:
    """Every third element."""
    index = np.arange(1, int(np.prod(shape)), 3)
    delta = np.random.default_rng(len(name)).normal(size=index.size)
    target = _target(name, Kind.SPARSE, (), shape, {"delta": delta})
    return Target(
        name=name,
        kind=target.kind,
        layout=(),
        shape=shape,
        scale=target.scale,
        tensors={**target.tensors, "index": from_array(index.astype(np.int64))},
    )


def _axes(shape: tuple[int, ...], layout: Layout | None) -> tuple[int, int, tuple[int, ...], Layout]:
    layout = layout or KERNELS[len(shape)]
    return shape[layout.index("out")], shape[layout.index("in")], shape[2:], layout


def _target(name: str, kind: Kind, layout: Layout, shape: tuple[int, ...], arrays: dict[str, Array]) -> Target:
    tensors = {role: from_array(array.astype(np.float32)) for role, array in arrays.items()}
    return Target(name=name, kind=kind, layout=layout, shape=shape, scale=0.5, tensors=tensors)
