"""The kernel of a tensor in which several tensors of a checkpoint lie side by side, such as packed queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from lora_registry.adapter import Target
from lora_registry.format.container import Entry
from lora_registry.merge.kernel import Kernel, Read, Room
from lora_registry.merge.plan import Part
from lora_registry.onnx.window import Window
from lora_registry.ops.arrays import Array, numpy_dtype
from lora_registry.ops.fidelity import Sums


@dataclass(frozen=True, slots=True)
class PackedPart(Part):
    """A vector or matrix of which every change concerns a part.

    Attributes:
        windows: for each of the changes, the part that it concerns.
    """

    windows: tuple[Window, ...] = ()


class PackedKernel:
    """What is done with every block of a packed vector or matrix: each target changes its part, the rest stays.

    Args:
        part: the tensor, with one window for each change.
        dtype: its element type, in the base and in the output.
        read: for a change that needs a pass over its whole part before the first block.
    """

    def __init__(self, part: PackedPart, dtype: str, read: Read) -> None:
        assert dtype == part.entry.dtype, "the elements between the parts are copied"
        self._columns = part.entry.shape[1] if len(part.entry.shape) > 1 else 1
        self._type = numpy_dtype(dtype)
        self._kernels = [
            (window, Kernel(_alone(part, target, window), dtype, partial(self._read, window, read)))
            for target, window in zip(part.changes, part.windows, strict=True)
        ]

    def run(self, start: int, stop: int, read: Array, out: Array, room: Room) -> Sums | None:
        """Make the elements ``start`` to ``stop``, whole rows; see :meth:`lora_registry.merge.kernel.Kernel.run`."""
        first, last = start // self._columns, stop // self._columns
        before = read.view(self._type).reshape(-1, self._columns)
        after = out.view(self._type).reshape(-1, self._columns)
        after[:] = before
        found: list[Sums] = []
        for window, kernel in self._kernels:
            begin, rows, columns = _within(window, first, last)
            if not len(rows):
                continue
            held = np.ascontiguousarray(before[np.ix_(rows - first, columns)] if window.axis else before[rows - first])
            made = np.empty_like(held)
            figures = kernel.run(begin, begin + held.size, _bytes(held), _bytes(made), room)
            if window.axis:
                after[np.ix_(rows - first, columns)] = made
            else:
                after[rows - first] = made
            found += [figures] if figures is not None else []
        return Sums(*(sum(column) for column in zip(*found, strict=True))) if found else None

    def _read(self, window: Window, read: Read, start: int, stop: int) -> Array:
        """The elements from one number to another, whole rows, of the part that ``window`` names."""
        if not window.axis:
            rows = window.indices()[start // self._columns : stop // self._columns]
            first, last = int(rows[0]), int(rows[-1]) + 1
            table = read(first * self._columns, last * self._columns).reshape(-1, self._columns)
            chosen: Array = table[rows - first].reshape(-1)
            return chosen
        first, last = start // window.length, stop // window.length
        table = read(first * self._columns, last * self._columns).reshape(-1, self._columns)
        columns: Array = np.ascontiguousarray(window.of(table)).reshape(-1)
        return columns


def _alone(part: PackedPart, target: Target, window: Window) -> Part:
    """The part that ``target`` changes, as a tensor of its own."""
    shape = window.shape(part.entry.shape)
    return Part(target.name, Entry(part.entry.dtype, shape, 0, 0), target.name, (target,))


def _within(window: Window, first: int, last: int) -> tuple[int, Array, Array]:
    """Of some rows: the number in the part of their first element, those that are in it, and its columns."""
    indices = window.indices()
    if window.axis:
        return first * window.length, np.arange(first, last), indices
    begin, end = np.searchsorted(indices, (first, last))
    return int(begin), indices[begin:end], indices[:0]


def _bytes(array: Array) -> Array:
    flat: Array = array.reshape(-1).view(np.uint8)
    return flat
