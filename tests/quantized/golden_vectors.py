"""The vectors of ``golden/`` as checkpoints and as tensors in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lora_registry.adapter import Tensor
from lora_registry.format.container import encode_tensors, open_container
from lora_registry.ops.arrays import Array, to_array

FILES = sorted((Path(__file__).parent / "golden").glob("*.safetensors"))
NAMES = [path.stem for path in FILES]


class Stored:
    """The tensors of a vector as they are stored."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> str:
        return self.tensors[name].dtype

    def array(self, name: str) -> Array:
        return to_array(self.tensors[name])


def vector(name: str) -> tuple[Stored, dict, Tensor]:
    """The stored tensors, the configuration, and the expected weight ``m.weight``."""
    container = open_container(Path(__file__).parent / "golden" / f"{name}.safetensors")
    stored = {
        key.removeprefix("stored."): container.tensor(key) for key in container.entries if key.startswith("stored.")
    }
    return Stored(stored), json.loads(container.metadata["config"]), container.tensor("expected.m.weight")


def write_checkpoint(folder: Path, name: str, **others: Tensor) -> np.ndarray:
    """A checkpoint folder with the vector's weight and ``others``; gives the expected weight."""
    stored, config, expected = vector(name)
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"".join(map(bytes, encode_tensors({**stored.tensors, **others}, {}))))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
    return to_array(expected)
