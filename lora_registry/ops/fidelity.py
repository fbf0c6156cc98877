"""How much of a change survived: the change that was wanted against the change that the output dtype kept.

The loss is that of the output dtype, not of the arithmetic: in bfloat16, a change of 0.3 % of the weight
loses half of itself, whatever the accumulation (measured; see ``benchmarks/``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import fsum, inf, isfinite, sqrt
from typing import Any, NamedTuple, Self

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

    @property
    def retention(self) -> float:
        """How much of the change survived, from 0 to 1: 1 - ``relative_error``; 0 where that is not finite."""
        return max(0.0, 1.0 - self.relative_error) if isfinite(self.relative_error) else 0.0

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


class Sums(NamedTuple):
    """What one block, a run of elements, adds to the figures of its tensor.

    Attributes:
        base: ‖W‖².
        wanted: ‖D‖².
        error: ‖D' - D‖².
        cross: D · (D' - D).
        unchanged: elements of W that are what they were.
        elements: all of them.
    """

    base: float
    wanted: float
    error: float
    cross: float
    unchanged: int
    elements: int


class Scratch(NamedTuple):
    """Room for the differences of a block, so that none is allocated for each: as long as the largest block.

    Attributes:
        delta: float32 or float64, the type of the computation.
        error: the same.
        same: booleans.
    """

    delta: Array
    error: Array
    same: Array

    @classmethod
    def of(cls, elements: int, dtype: np.dtype[Any]) -> Self:
        """Room for blocks of at most ``elements`` elements of ``dtype``."""
        return cls(np.empty(elements, dtype), np.empty(elements, dtype), np.empty(elements, np.bool_))


def sums(base: Array, wanted: Array, kept: Array, scratch: Scratch | None = None, *, has_delta: bool = False) -> Sums:
    """What a block adds to the figures of its tensor.

    Args:
        base: W, flat, float32 or float64.
        wanted: W + D, unrounded, of the same type.
        kept: W + D' as the file will hold it, widened to the same type.
        scratch: of that type; None allocates.
        has_delta: D is in ``scratch.delta`` already.
    """
    elements = base.size
    scratch = scratch or Scratch.of(elements, base.dtype)
    delta, error, same = scratch.delta[:elements], scratch.error[:elements], scratch.same[:elements]
    with np.errstate(over="ignore", invalid="ignore"):  # weights of 1e20, or infinite: the figure says so
        if not has_delta:
            np.subtract(wanted, base, out=delta)
        np.subtract(kept, wanted, out=error)
        np.equal(kept, base, out=same)
        return Sums(
            float(np.dot(base, base)),
            float(np.dot(delta, delta)),
            float(np.dot(error, error)),
            float(np.dot(delta, error)),
            int(np.count_nonzero(same)),
            elements,
        )


def fidelity(blocks: Iterable[Sums]) -> Fidelity:
    """The figures of a tensor from those of its blocks, whose order does not matter.

    A change of nothing is perfectly kept.
    """
    taken = list(blocks)
    base, wanted, error, cross = (_exact_sum([block[field] for block in taken]) for field in range(4))
    unchanged, elements = sum(block.unchanged for block in taken), sum(block.elements for block in taken)
    written = max(wanted + 2 * cross + error, 0.0)  # ‖D'‖², since D' = D + error
    if wanted == 0.0:
        relative, cosine = (0.0, 1.0) if error == 0.0 else (inf, 0.0)
    else:
        relative = sqrt(error / wanted)
        cosine = (wanted + cross) / (sqrt(wanted) * sqrt(written)) if written else 0.0
    return Fidelity(
        relative_error=relative,
        cosine=min(1.0, max(-1.0, cosine)),
        unchanged_fraction=unchanged / elements if elements else 1.0,
        delta_ratio=_ratio(wanted, base),
    )


def _exact_sum(values: list[float]) -> float:
    """The sum, rounded once, whatever the order; math.fsum refuses infinities of both signs."""
    return fsum(values) if all(map(isfinite, values)) else sum(values)


def _ratio(wanted: float, base: float) -> float:
    if base:
        return sqrt(wanted / base)
    return 0.0 if wanted == 0.0 else inf


def measure(base: Array, wanted: Array, written: Array) -> Fidelity:
    """Fidelity of one whole tensor.

    Args:
        base: W, float32 or float64.
        wanted: W + D, unrounded, of the same shape.
        written: W + D' as the file will hold it, of any float type and the same shape.
    """
    kept = written.astype(wanted.dtype, copy=False).reshape(-1)
    return fidelity([sums(base.astype(wanted.dtype, copy=False).reshape(-1), wanted.reshape(-1), kept)])
