"""Switchable models in tests: adapters to switch between, inputs by a session's own account, and bits to compare."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lora_registry.adapter import Adapter, Kind, Target, Tensor

FREE = {"batch": 2, "sequence": 5, "past_sequence": 3}
"""Lengths of the free axes that loreg's exporter names; any other is past and sequence together."""


def open_cpu(path: Path | bytes) -> onnxruntime.InferenceSession:
    """A plain session with ONNX Runtime's default optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    model = path if isinstance(path, bytes) else str(path)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(session: Any, *, seed: int = 0, **free: int) -> dict[str, np.ndarray]:
    """Random inputs of the right shapes and types; ``free`` overrides :data:`FREE`."""
    lengths = {**FREE, **free}
    random = np.random.default_rng(seed)
    made: dict[str, np.ndarray] = {}
    for value in session.get_inputs():
        whole = lengths["sequence"] + lengths["past_sequence"]
        shape = [axis if isinstance(axis, int) else lengths.get(axis, whole) for axis in value.shape]
        if value.type != "tensor(int64)":
            made[value.name] = random.standard_normal(shape).astype(np.float32)
        elif "mask" in value.name:
            made[value.name] = np.ones(shape, np.int64)
        elif value.name == "position_ids":
            made[value.name] = np.broadcast_to(np.arange(whole - shape[1], whole), shape).copy()
        elif "type" in value.name:
            made[value.name] = random.integers(0, 2, size=shape)
        else:
            made[value.name] = random.integers(3, 90, size=shape)
    return made


def same_bits(one: list[Any], other: list[Any]) -> bool:
    """Whether all outputs are the same, bit for bit."""
    return len(one) == len(other) and all(a.tobytes() == b.tobytes() for a, b in zip(one, other, strict=True))


def low_rank(
    name: str,
    kind: Kind,
    layout: tuple[str, ...],
    shape: tuple[int, ...],
    *,
    rank: int = 3,
    scale: float = 0.5,
    seed: int = 0,
) -> Target:
    """A random target with factors."""
    random = np.random.default_rng((seed, len(name)))
    lengths = dict(zip(layout, shape, strict=False))
    kernel = shape[2:] if kind is Kind.CONV else ()
    a = random.standard_normal((rank, lengths["in"], *kernel)).astype(np.float32)
    b = random.standard_normal((lengths["out"], rank, *(1 for _ in kernel))).astype(np.float32)
    tensors = {role: Tensor("F32", array.shape, array.tobytes()) for role, array in (("A", a), ("B", b))}
    return Target(name=name, kind=kind, layout=layout, shape=shape, tensors=tensors, scale=scale)


def change(target: Target) -> np.ndarray:
    """s · B · A, (out, in) in float64."""
    a, b = (np.frombuffer(target.tensors[role].data, np.float32).astype(np.float64) for role in "AB")
    rank = target.tensors["A"].shape[0]
    return target.scale * b.reshape(-1, rank) @ a.reshape(rank, -1)


def adapter(*targets: Target) -> Adapter:
    """An adapter of these targets."""
    return Adapter(targets=targets)


def relative(got: Any, wanted: Any) -> float:
    """The largest error, relative to the largest value that was wanted."""
    wanted = np.asarray(wanted)
    assert np.asarray(got).shape == wanted.shape
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def first(outputs: Mapping[str, Any] | list[Any]) -> Any:
    """The first output of a run."""
    return next(iter(outputs.values())) if isinstance(outputs, Mapping) else outputs[0]
