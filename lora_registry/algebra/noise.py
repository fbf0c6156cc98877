"""What rounding to an element type adds to a matrix: errors that look like a change, and that a change can hide in.

The error of one element is spread evenly over the spacing of the numbers around it, so that its variance is a twelfth
of the spacing squared. The largest singular value of a matrix of independent errors is about its largest row norm
plus its largest column norm (Seginer 2000, Combinatorics, Probability and Computing 9).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np

from lora_registry.ops.arrays import Array, dtype_name

_PRECISION: Mapping[str, int] = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8, "F8_E4M3": 4, "F8_E5M2": 3}
"""Bits of the significand, the hidden one included."""

_BLOCK = 1 << 20  # elements looked at together


@dataclass(frozen=True, slots=True)
class Noise:
    """The rounding of a matrix.

    Attributes:
        norm: its expected Frobenius norm.
        largest: about its largest singular value.
    """

    norm: float
    largest: float


def rounding_noise(weights: Array, dtype: str | None = None) -> Noise:
    """The noise in a matrix that was rounded to an element type.

    Args:
        weights: (rows, columns) of a float type.
        dtype: the type by safetensors' name; the one that ``weights`` has, if None.
    """
    precision = _PRECISION[dtype or dtype_name(weights.dtype)]
    columns = np.zeros(weights.shape[1])
    total = widest = 0.0
    step = max(1, _BLOCK // weights.shape[1])
    for start in range(0, len(weights), step):
        block = weights[start : start + step].astype(np.float64)
        spacing = np.where(block == 0, 0.0, np.ldexp(1.0, np.frexp(block)[1] - precision))
        rows = np.einsum("rc,rc->r", spacing, spacing) / 12
        columns += np.einsum("rc,rc->c", spacing, spacing) / 12
        total += float(rows.sum())
        widest = max(widest, float(rows.max()))
    return Noise(sqrt(total), sqrt(widest) + sqrt(float(columns.max())))
