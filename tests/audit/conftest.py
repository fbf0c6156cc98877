"""An adapter that no rule has anything to say about, and the base that it was made for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter, Base, Kind, Layout, Target
from lora_registry.merge.bases.base import open_base
from lora_registry.ops.arrays import Array, from_array
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import target_fingerprint

LAYERS = 18  # enough for a family of which one can stand out
OPEN = Callable[[dict[str, Array]], BaseModel]


@pytest.fixture
def weights() -> dict[str, Array]:
    """Base tensors of every low-rank shape, and one bias."""
    random = np.random.default_rng(7)
    shapes: dict[str, tuple[int, ...]] = {
        f"model.layers.{layer}.self_attn.q_proj.weight": (12, 10) for layer in range(LAYERS)
    }
    shapes |= {
        "model.layers.0.mlp.c_fc.weight": (10, 14),
        "model.layers.0.mlp.c_fc.bias": (14,),
        "model.layers.0.mlp.experts.gate_up_proj": (4, 9, 8),
        "vision.patch.weight": (8, 6, 3, 3),
    }
    return {name: random.normal(0, 0.02, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def clean(weights: dict[str, Array]) -> Adapter:
    """A trained adapter with everything that a careful writer records."""
    random = np.random.default_rng(11)

    def normal(*shape: int) -> Array:
        return random.normal(0, 0.1, shape).astype(np.float32)

    def target(name: str, kind: Kind, layout: Layout, tensors: dict[str, Array]) -> Target:
        made = Target(
            name=name,
            kind=kind,
            layout=layout,
            shape=weights[name].shape,
            tensors={role: from_array(array) for role, array in tensors.items()},
            scale=2.0,
        )
        return replace(made, fingerprint=target_fingerprint(made, weights[name]))

    targets = [
        target(name, Kind.LINEAR, ("out", "in"), {"A": normal(3, 10), "B": normal(12, 3)})
        for name in weights
        if "q_proj" in name
    ]
    fused, experts = {"A": normal(3, 10), "B": normal(14, 3)}, {"A": normal(4, 2, 8), "B": normal(4, 9, 2)}
    patch = {"A": normal(4, 6, 3, 3), "B": normal(8, 4, 1, 1)}
    targets += [
        target("model.layers.0.mlp.c_fc.weight", Kind.LINEAR, ("in", "out"), fused),
        target("model.layers.0.mlp.c_fc.bias", Kind.BIAS, ("out",), {"delta": normal(14)}),
        target("model.layers.0.mlp.experts.gate_up_proj", Kind.EXPERTS, ("expert", "out", "in"), experts),
        target("vision.patch.weight", Kind.CONV, ("out", "in", "k", "k"), patch),
    ]
    return Adapter(
        targets=tuple(targets),
        base=Base(name="HuggingFaceTB/SmolLM2-135M-Instruct", revision="7e27bd9f95328f0f", license="Apache-2.0"),
        info={
            "title": "Tone",
            "license": "MIT",
            "authors": ["Ada Byron <ada@example.org>"],
            "tags": ["tone/and/style"],
        },
        origin={
            "format": "peft",
            "version": "0.21.2",
            "config": {"r": 3, "lora_alpha": 6, "target_modules": r"model\.layers\.\d+\.(self_attn|mlp)\..*"},
        },
    )


@pytest.fixture
def open_weights(tmp_path: Path) -> OPEN:
    """A function that opens weights as a base model."""

    def opened(weights: dict[str, Array]) -> BaseModel:
        path = tmp_path / "model.safetensors"
        save_file(weights, path)
        return open_base(path)

    return opened
