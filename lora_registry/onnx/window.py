"""The part of an initializer that is one tensor of the checkpoint, where several lie in it side by side.

Builders of fast graphs pack queries, keys and values into one matrix: one behind the other ([in, q+k+v], onnxruntime
1.32's ``Attention`` and onnxruntime-genai 0.18), or head by head ([in, heads·3·width], onnxruntime.transformers for
diffusers' UNets). Both are runs of equal length at equal distances along the axis of the outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Json
from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True)
class Window:
    """Runs of indices along one axis, in ascending order.

    Attributes:
        axis: of the initializer.
        start: the first index.
        run: indices that follow each other.
        count: number of runs.
        period: from the first index of a run to that of the next; ``run`` where there is one.
    """

    axis: int
    start: int
    run: int
    count: int = 1
    period: int = 0

    @property
    def length(self) -> int:
        """Indices in all."""
        return self.run * self.count

    @property
    def stop(self) -> int:
        """One past the last index."""
        return self.start + (self.count - 1) * self.period + self.run

    def indices(self) -> Array:
        """All of them, ascending; int64."""
        return (self.start + np.arange(self.count)[:, None] * self.period + np.arange(self.run)).reshape(-1)

    def of(self, array: Array) -> Array:
        """These indices of ``array`` along the axis: a view where there is one run."""
        if self.count == 1:
            return array[(slice(None),) * self.axis + (slice(self.start, self.stop),)]
        return np.take(array, self.indices(), self.axis)

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """Axis lengths of the part, from those of the whole."""
        return (*whole[: self.axis], self.length, *whole[self.axis + 1 :])

    def overlaps(self, other: Window) -> bool:
        """Whether both contain an index."""
        return bool(np.intersect1d(self.indices(), other.indices()).size)

    def to_json(self) -> dict[str, Json]:
        """As ``loreg onnx map`` and receipts tell it."""
        told: dict[str, Json] = {"axis": self.axis, "start": self.start, "run": self.run}
        return told if self.count == 1 else {**told, "count": self.count, "period": self.period}

    def __str__(self) -> str:
        """As people read it: ``[:, 48:64]``, or ``[:, 0:16 of every 48]``."""
        every = f" of every {self.period}" if self.count > 1 else ""
        return f"[{':, ' * self.axis}{self.start}:{self.start + self.run}{every}]"


def windowed(array: Array, window: Window | None) -> Array:
    """The part of ``array`` that ``window`` names; all of it where there is none."""
    return array if window is None else window.of(array)


def find(whole: Array, part: Array, axis: int) -> Window | None:
    """Where along ``axis`` of the matrix ``whole`` the matrix ``part`` lies; None where it does not, or twice.

    Args:
        whole: bits of a matrix, of an unsigned integer type.
        part: bits of a smaller one, as long as ``whole`` in the other axis.
        axis: 0 or 1.
    """
    lines, wanted = (whole, part) if axis else (whole.T, part.T)
    if not lines.size or not wanted.size or len(lines) != len(wanted) or lines.shape[1] < wanted.shape[1]:
        return None
    found = [
        window
        for start in np.flatnonzero(lines[0] == wanted[0, 0])
        if (window := _along(lines[0], wanted[0], int(start), axis)) is not None
        and np.array_equal(window.of(whole), part)
    ]
    return found[0] if len(found) == 1 else None


def _along(line: Array, wanted: Array, start: int, axis: int) -> Window | None:
    """The runs by which ``wanted`` lies in ``line`` from ``start`` on."""
    length = len(wanted)
    reach = min(length, len(line) - start)
    differs = np.flatnonzero(line[start : start + reach] != wanted[:reach])
    run = int(differs[0]) if differs.size else reach
    if run == length:
        return Window(axis, start, length)
    if length % run:
        return None
    count = length // run
    for following in np.flatnonzero(line[start + run :] == wanted[run]):
        window = Window(axis, start, run, count, run + int(following))
        if window.stop <= len(line) and np.array_equal(line[window.indices()], wanted):
            return window
    return None
