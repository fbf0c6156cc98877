"""How much of a change survived: the change that was wanted against the change that the output dtype kept.

The loss is that of the output dtype, not of the arithmetic: in bfloat16, a change of 0.3 % of the weight
loses half of itself, whatever the accumulation (measured; see ``benchmarks/``).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np

from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What became of one tensor's change, with W the base, D the wanted change and D' the one written.

    Attributes:
        relative_error: ‖D' - D‖ / ‖D‖; 0 is perfect, 1 means that the change is gone.
        cosine: of the angle between D' and D; 0 where nothing was written.
        unchanged_fraction: elements of W that are what they were.
        delta_ratio: ‖D‖ / ‖W‖, the size of the change.
    """

    relative_error: float
    cosine: float
    unchanged_fraction: float
    delta_ratio: float

    def to_json(self) -> dict[str, float | None]:
        """The four numbers by name, to six significant digits: more would be noise of the summation.

        JSON has no infinity: null stands for the ratio to a base, or to a change, of zeros, and for figures of
        weights that are not finite themselves.
        """
        return {
            "relative_error": _digits(self.relative_error),
            "cosine": _digits(self.cosine),
            "unchanged_fraction": _digits(self.unchanged_fraction),
            "delta_ratio": _digits(self.delta_ratio),
        }


def _digits(value: float) -> float | None:
    return float(f"{value:.6g}") if isfinite(value) else None


class Measurement:
    """Sums over the blocks of one tensor, from which :class:`Fidelity` follows."""

    __slots__ = ("_base", "_cross", "_elements", "_error", "_unchanged", "_wanted")

    def __init__(self) -> None:
        self._base = self._wanted = self._error = self._cross = 0.0
        self._unchanged = self._elements = 0

    def add(self, base: Array, wanted: Array, written: Array) -> None:
        """Take in one block.

        Args:
            base: W, float32 or float64.
            wanted: W + D, unrounded, of the same shape.
            written: W + D' as the file will hold it, of any float type and the same shape.
        """
        kept = written.astype(wanted.dtype, copy=False).reshape(-1)
        before, after = base.reshape(-1).astype(wanted.dtype, copy=False), wanted.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):  # weights of 1e20, or infinite: the figure says so
            delta, error = after - before, kept - after
            self._base += float(np.dot(before, before))
            self._wanted += float(np.dot(delta, delta))
            self._error += float(np.dot(error, error))
            self._cross += float(np.dot(delta, error))
        self._unchanged += int(np.count_nonzero(kept == before))
        self._elements += before.size

    def result(self) -> Fidelity:
        """The figures for everything that was taken in; a change of nothing is perfectly kept."""
        written = max(self._wanted + 2 * self._cross + self._error, 0.0)  # ‖D'‖², since D' = D + error
        if self._wanted == 0.0:
            relative, cosine = (0.0, 1.0) if self._error == 0.0 else (float("inf"), 0.0)
        else:
            relative = sqrt(self._error / self._wanted)
            cosine = (self._wanted + self._cross) / sqrt(self._wanted * written) if written else 0.0
        return Fidelity(
            relative_error=relative,
            cosine=min(1.0, max(-1.0, cosine)),
            unchanged_fraction=self._unchanged / self._elements if self._elements else 1.0,
            delta_ratio=_ratio(self._wanted, self._base),
        )


def _ratio(wanted: float, base: float) -> float:
    if base:
        return sqrt(wanted / base)
    return 0.0 if wanted == 0.0 else float("inf")


def measure(base: Array, wanted: Array, written: Array) -> Fidelity:
    """Fidelity of one whole tensor; see :meth:`Measurement.add` for the arguments."""
    measurement = Measurement()
    measurement.add(base, wanted, written)
    return measurement.result()
