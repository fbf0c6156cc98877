"""A target of every kind that merges, each on a tensor ``w`` of several rows that a few blocks cut."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lora_registry.adapter import Kind, Layout, Target, Tensor
from lora_registry.ops.arrays import from_array

OUT_IN: Layout = ("out", "in")
IN_OUT: Layout = ("in", "out")


def _normal(*shape: int) -> np.ndarray:
    """The same noise for the same shape."""
    return np.asarray(np.random.default_rng(sum(shape)).normal(size=shape) * 0.3)


def _positive(*shape: int) -> np.ndarray:
    return np.asarray(np.abs(_normal(*shape)) + 0.5)


def _target(
    kind: Kind, layout: Layout, shape: tuple[int, ...] | None, arrays: Mapping[str, np.ndarray], scale: float = 0.5
) -> Target:
    tensors: dict[str, Tensor] = {
        role: from_array(array if array.dtype == np.int64 else np.ascontiguousarray(array, np.float32))
        for role, array in arrays.items()
    }
    rows = (2, 350, 699) if kind is Kind.TOKENS else ()
    return Target(name="w", kind=kind, layout=layout, shape=shape, scale=scale, tensors=tensors, rows=rows)


_TALL, _WIDE = (300, 200), (200, 300)
_PAIR = {"A": _normal(8, 200), "B": _normal(300, 8)}
_DORA = {"magnitude": _positive(300)}
_LOHA = {"A1": _normal(8, 200), "B1": _normal(300, 8), "A2": _normal(5, 200), "B2": _normal(300, 5)}
_LOKR = {"C1": _normal(10, 8), "A2": _normal(3, 25), "B2": _normal(30, 3)}
_TABLE = {"A": _normal(4, 700), "B": _normal(64, 4)}
_KERNEL = {"A": _normal(4, 40, 3, 3), "B": _normal(60, 4, 1, 1)}
_EXPERTS = {"A": _normal(4, 5, 90), "B": _normal(4, 60, 5)}
_POINTS = {"delta": _normal(50), "index": np.arange(7, 59_000, 1180, dtype=np.int64)}

TARGETS = {
    "linear": _target(Kind.LINEAR, OUT_IN, _TALL, _PAIR),
    "linear, in out": _target(Kind.LINEAR, IN_OUT, _WIDE, _PAIR),
    "dora": _target(Kind.LINEAR, OUT_IN, _TALL, _PAIR | _DORA),
    "dora, in out": _target(Kind.LINEAR, IN_OUT, _WIDE, _PAIR | _DORA),
    "value": _target(Kind.LINEAR, OUT_IN, _TALL, _PAIR | {"value": _normal(300, 200)}),
    "embedding": _target(Kind.EMBEDDING, IN_OUT, (700, 64), _TABLE, 2.0),
    "conv": _target(Kind.CONV, ("out", "in", "k", "k"), (60, 40, 3, 3), _KERNEL),
    "experts": _target(Kind.EXPERTS, ("expert", "out", "in"), (4, 60, 90), _EXPERTS),
    "experts, in out": _target(Kind.EXPERTS, ("expert", "in", "out"), (4, 90, 60), _EXPERTS),
    "loha": _target(Kind.LOHA, OUT_IN, _TALL, _LOHA),
    "loha, in out": _target(Kind.LOHA, IN_OUT, _WIDE, _LOHA),
    "lokr": _target(Kind.LOKR, OUT_IN, _TALL, _LOKR),
    "lokr, in out": _target(Kind.LOKR, IN_OUT, _WIDE, _LOKR),
    "lokr, dora": _target(Kind.LOKR, OUT_IN, _TALL, _LOKR | _DORA),
    "bias": _target(Kind.BIAS, ("out",), (900,), {"delta": _normal(900)}),
    "sparse": _target(Kind.SPARSE, (), _TALL, _POINTS),
    "tokens": _target(Kind.TOKENS, IN_OUT, (700, 64), {"value": _normal(3, 64)}, 1.0),
    "full": _target(Kind.FULL, (), _TALL, {"value": _normal(300, 200)}, 1.0),
}
