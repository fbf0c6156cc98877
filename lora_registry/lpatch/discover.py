"""The factors of a merge of which the adapter is not at hand, found in the difference of the two models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lora_registry.adapter import Adapter, Target
from lora_registry.algebra.extract import extract
from lora_registry.algebra.truncation import Truncation
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.onnx.pairs import OnnxCheckpoint, open_pair
from lora_registry.ops.arrays import Array
from lora_registry.progress import Counted, Progress


def discover(base: Path, merged: Path, *, progress: Progress | None = None) -> Adapter:
    """What :mod:`~lora_registry.algebra.extract` finds, matrix by matrix; those without a low rank are left out.

    What is found need not be what was merged. A patch by it is exact all the same, since it holds what is left.

    Args:
        base: an ``.onnx``.
        merged: another one of the same graph.
        progress: called with the matrices done, and all.

    Raises:
        NotFoundError, InvalidInputError, UnsupportedError: as :func:`~lora_registry.onnx.pairs.open_pair`.
    """
    first, second = open_pair(base, merged)
    names = [name for name in first.names() if name in first.readings]
    counted = Counted(progress, len(names))
    targets: list[Target] = []
    for name in names:
        if not np.array_equal(_bits(first.array(name)), _bits(second.array(name))):
            targets += _found(name, first, second)
        counted.advance(1)
    return Adapter(targets=tuple(targets))


def _found(name: str, first: OnnxCheckpoint, second: OnnxCheckpoint) -> tuple[Target, ...]:
    try:
        readings = {name: first.readings[name]}
        return extract(_Only(first, name), _Only(second, name), Truncation(), readings=readings).adapter.targets
    except (InvalidInputError, UnsupportedError):
        return ()  # no low rank, nothing above the rounding, or not finite: the difference is stored as it is


def _bits(array: Array) -> Array:
    return array.view(f"u{array.dtype.itemsize}")


@dataclass(frozen=True, slots=True)
class _Only:
    """One tensor of a checkpoint; a :class:`~lora_registry.ops.base_model.BaseModel`."""

    whole: OnnxCheckpoint
    name: str
    ties: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.whole.shape(name)

    def dtype(self, name: str) -> str:
        return self.whole.dtype(name)

    def array(self, name: str) -> Array:
        return self.whole.array(name)
