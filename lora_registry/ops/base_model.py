"""What fitting an adapter to a base model, and finding its tensors in a graph, need to know of the base."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from lora_registry.ops.arrays import Array


class BaseModel(Protocol):
    """The tensors of a base model by name: a checkpoint, or an ONNX model seen as one."""

    @property
    def ties(self) -> Mapping[str, str]:
        """Name of a tensor that shares another's values to the name of that other."""

    def names(self) -> Iterable[str]:
        """Names of the tensors that are stored."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths as stored."""

    def dtype(self, name: str) -> str:
        """Element type by safetensors' name."""

    def array(self, name: str) -> Array:
        """The elements; nothing is read before somebody looks at them."""
