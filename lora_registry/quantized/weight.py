"""What every scheme has in common: a weight that is computed from the tensors that are stored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

import numpy as np

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array, round_to


class Tensors(Protocol):
    """Tensors as they are stored, by name."""

    def names(self) -> Iterable[str]:
        """Their names."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths; KeyError where there is none of that name."""

    def dtype(self, name: str) -> str:
        """Element type by safetensors' name."""

    def array(self, name: str) -> Array:
        """The elements, as a window of the file."""


class QuantizedWeight(Protocol):
    """One weight of a quantized checkpoint.

    A row is a run of elements along the last axis; rows are counted over all other axes.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths of the weight, not of what is stored."""

    @property
    def dtype(self) -> str:
        """Element type that the scheme's own implementation dequantizes to, by safetensors' name."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the stored tensors that it is computed from; of the first, the weight takes the place."""

    def rows(self, first: int, last: int) -> Array:
        """The rows from ``first`` to before ``last``: float32, (last - first, length of a row), unrounded."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a checkpoint is quantized.

    Attributes:
        name: by the words of the specification, section 9.2: ``nf4``, ``gptq``, ...
        parameters: what else tells one form of the scheme from another, such as the size of a group.
    """

    name: str
    parameters: Mapping[str, Json] = field(default_factory=dict)

    def to_json(self) -> dict[str, Json]:
        """The scheme as the ``view`` of an adapter's base."""
        return {"scheme": self.name, **self.parameters}

    def __str__(self) -> str:
        said = ", ".join(f"{key} {value}" for key, value in self.parameters.items())
        return f"{self.name} ({said})" if said else self.name


@dataclass(frozen=True, slots=True)
class Quantization:
    """What was recognized in a checkpoint.

    Attributes:
        scheme: how its weights are quantized.
        weights: the quantized ones by name.
        dropped: names of stored tensors that only a quantized model has a use for, such as scales of activations.
        written: the element type that a merge writes where it is not that of the weight, by name.
    """

    scheme: Scheme
    weights: Mapping[str, QuantizedWeight]
    dropped: frozenset[str] = frozenset()
    written: Mapping[str, str] = field(default_factory=dict)


Finder = Callable[[Tensors, Mapping[str, Json], str], Quantization | None]
"""Finds the weights of one scheme, given the tensors, ``quantization_config`` and the dtype of the model."""


def elements(weight: QuantizedWeight, start: int, stop: int) -> Array:
    """The elements of ``weight`` from number ``start`` to before ``stop``, flat, rounded once to its dtype."""
    width = weight.shape[-1]
    if start >= stop:
        return round_to(np.empty(0, np.float32), weight.dtype)
    first = start // width
    rows = weight.rows(first, -(-stop // width)).reshape(-1)
    return round_to(rows[start - first * width : stop - first * width], weight.dtype)


def row_count(weight: QuantizedWeight) -> int:
    """Number of rows."""
    return prod(weight.shape[:-1])


def require(tensors: Tensors, known: frozenset[str], name: str, dtypes: Iterable[str], *, axes: int) -> Array:
    """A stored tensor that the scheme cannot do without.

    Raises:
        InvalidInputError: it is not there, or has another number of axes.
        UnsupportedError: it has another element type.
    """
    if name not in known:
        raise InvalidInputError(f"{name} is missing, without which the weight beside it cannot be read")
    if tensors.dtype(name) not in dtypes:
        raise UnsupportedError(f"{name} holds {tensors.dtype(name)}; loreg reads {' or '.join(dtypes)} there")
    if len(tensors.shape(name)) != axes:
        raise InvalidInputError(f"{name} has shape {list(tensors.shape(name))}, which is not one of {axes} axes")
    return tensors.array(name)


def integer(settings: Mapping[str, Json], key: str) -> int | None:
    """An integer of a configuration; None where there is none of that name."""
    value = settings.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def table(settings: Mapping[str, Json], key: str) -> Mapping[str, Json]:
    """An object of a configuration; empty where there is none of that name."""
    value = settings.get(key)
    return value if isinstance(value, dict) else {}
