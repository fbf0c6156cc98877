"""A tensor of a checkpoint as a matrix of which rows are read; those of a quantized weight are computed for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.quantized import QuantizedCheckpoint
from lora_registry.ops.arrays import Array, numpy_dtype


class ComputedRows:
    """A matrix whose rows are computed when somebody asks for them; the last ones are kept.

    Args:
        shape: rows and columns.
        dtype: of the elements.
        elements: gives those from one number to before another, flat.
    """

    def __init__(self, shape: tuple[int, int], dtype: np.dtype[Any], elements: Callable[[int, int], Array]) -> None:
        self.shape = shape
        self.dtype = dtype
        self._elements = elements
        self._last: tuple[bytes, Array] | None = None

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Array | slice) -> Array:
        """The given rows, ascending: (n, columns)."""
        numbers = np.arange(self.shape[0])[rows]
        key = numbers.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._compute(numbers)
        return self._last[1]

    def _compute(self, numbers: Array) -> Array:
        columns = self.shape[1]
        result = np.empty((len(numbers), columns), self.dtype)
        cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
        for run in np.split(np.arange(len(numbers)), cuts):  # rows that follow each other are computed in one go
            if len(run):
                first, last = int(numbers[run[0]]), int(numbers[run[-1]]) + 1
                result[run] = self._elements(first * columns, last * columns).reshape(-1, columns)
        return result


Matrix: TypeAlias = Array | ComputedRows
"""What has a shape, a dtype, and rows."""


def matrix(model: Checkpoint, name: str, shape: tuple[int, int]) -> Matrix:
    """The tensor ``name`` as a matrix of ``shape``; KeyError where there is none of that name."""
    if not model.is_computed(name):
        return model.array(name).reshape(shape)
    return ComputedRows(shape, numpy_dtype(model.dtype(name)), lambda start, stop: model.elements(name, start, stop))


def unrounded(model: Checkpoint, name: str) -> Callable[[int, int], Array] | None:
    """The elements of a quantized weight before they are rounded to the type of the view.

    Returns:
        What gives those from one number to before another, flat, float32; None where the view rounds nothing.
    """
    if not isinstance(model, QuantizedCheckpoint) or not model.is_computed(name) or model.dtype(name) == "F32":
        return None
    weight = model.weight(name)

    def elements(start: int, stop: int) -> Array:
        width = weight.shape[-1]
        first = start // width
        rows: Array = weight.rows(first, -(-stop // width)).reshape(-1)
        return rows[start - first * width : stop - first * width]

    return elements


def unrounded_matrix(model: Checkpoint, name: str, shape: tuple[int, int]) -> Matrix | None:
    """The same as a matrix of ``shape``."""
    elements = unrounded(model, name)
    return None if elements is None else ComputedRows(shape, np.dtype(np.float32), elements)
