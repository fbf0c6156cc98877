"""Rounding to a narrow type inside of float64, by the definitions of the types alone.

The judge of a merge shares no arithmetic with the merge: what is right is found in float64, and rounded here by
working on the bits of the float64, not by the conversions of numpy and ml_dtypes that the merge uses.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lora_registry.ops.arrays import Array


@dataclass(frozen=True, slots=True)
class _Type:
    """A binary floating-point type.

    Attributes:
        precision: significant bits, the hidden one included.
        least: exponent of the smallest normal number.
        largest: the largest finite number.
        infinite: what is beyond it.
    """

    precision: int
    least: int
    largest: float
    infinite: float = np.inf


_TYPES = {
    "F64": _Type(53, -1022, float(np.finfo(np.float64).max)),
    "F32": _Type(24, -126, float(np.finfo(np.float32).max)),
    "F16": _Type(11, -14, 65504.0),
    "BF16": _Type(8, -126, 2.0**127 * (2 - 2**-7)),
    "F8_E4M3": _Type(4, -6, 448.0, np.nan),
    "F8_E5M2": _Type(3, -14, 57344.0),
}
"""Section 6 of the format: IEEE 754 binary32 and binary16, the upper half of a binary32, and the OCP 8-bit types."""


def nearest(values: Array, dtype: str) -> Array:
    """The element of ``dtype`` nearest to each of ``values`` (float64), ties to even, as float64.

    What rounds to beyond the largest number is infinite, or NaN in a type without infinities.
    """
    if dtype == "F64":
        return values
    kind = _TYPES[dtype]
    shift = np.uint64(53 - kind.precision)
    bits = np.ascontiguousarray(values, dtype=np.float64).view(np.uint64)
    half, one = np.uint64(1) << (shift - np.uint64(1)), np.uint64(1)
    rounded = (bits + (half - one) + ((bits >> shift) & one)) >> shift << shift
    result: Array = rounded.view(np.float64)
    size = np.abs(values)
    small = size < 2.0**kind.least
    if small.any():  # below the normal numbers the spacing no longer shrinks
        result[small] = np.rint(values[small] / _spacing(kind)) * _spacing(kind)
    beyond = np.abs(result) > kind.largest
    if beyond.any():
        result[beyond] = np.copysign(kind.infinite, values[beyond])
    strange = ~np.isfinite(values)
    if strange.any():
        result[strange] = values[strange]
    return result


def unit(values: Array, dtype: str) -> Array:
    """The distance from each of ``values`` (float64) to the next element of ``dtype``: a unit in the last place."""
    kind = _TYPES[dtype]
    exponent = np.where(values == 0, kind.least, np.frexp(values)[1] - 1)
    distance: Array = np.ldexp(1.0, np.maximum(exponent, kind.least) - kind.precision + 1)
    return distance


def _spacing(kind: _Type) -> float:
    return float(2.0 ** (kind.least - kind.precision + 1))
