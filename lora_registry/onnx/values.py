"""The resolver's rule that goes by values: an initializer is the tensor whose numbers it holds.

Works for every exporter, as long as the base checkpoint is at hand and the weights are not quantized.
Values are compared bit for bit, after the one rounding that casting to the initializer's dtype makes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lora_registry.dtypes import BY_NUMPY
from lora_registry.onnx.model import FLOATING, OnnxModel, dtype_of, shape_of
from lora_registry.onnx.window import Window, find
from lora_registry.ops.arrays import Array, round_to

_SAMPLES = 61  # elements compared before all of them are; a prime, so that no axis length is a multiple of it


def swap(shape: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` with its two last axes swapped; as it is where it has fewer."""
    return (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 1 else shape


def oriented(array: Array, transposed: bool) -> Array:
    """A view of ``array`` with its two last axes swapped, if ``transposed``."""
    return np.swapaxes(array, -1, -2) if transposed and array.ndim > 1 else array


def cast(array: Array, dtype: str) -> Array:
    """``array`` in the element type ``dtype``, rounded once; as it is where it has that type already."""
    named = BY_NUMPY.get(array.dtype.name)
    if named is not None and named.name == dtype:
        return array
    return round_to(array.astype(np.float64 if array.dtype == np.float64 else np.float32), dtype)


def same_values(one: Array, other: Array) -> bool:
    """Whether two arrays hold the same bits; a few elements first, since most pairs differ there."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    word = np.dtype(f"u{one.dtype.itemsize}")
    one, other = one.view(word), other.view(word)
    if one.size > _SAMPLES:
        places = np.unravel_index(np.linspace(0, one.size - 1, _SAMPLES, dtype=np.int64), one.shape)
        if not np.array_equal(one[places], other[places]):
            return False
    return np.array_equal(one, other)


def carriers_of(model: OnnxModel, array: Array) -> Iterator[tuple[str, bool]]:
    """Initializers that hold ``array`` cast to their dtype: name, and whether with its two last axes swapped."""
    casts: dict[str, Array] = {}
    for name, value in model.initializers.items():
        dtype, shape = dtype_of(value), shape_of(value)
        if dtype not in FLOATING or shape not in (array.shape, swap(array.shape)):
            continue
        wanted = casts.setdefault(dtype, cast(array, dtype)) if dtype not in casts else casts[dtype]
        held = model.elements(value)
        for transposed in (False, True) if array.ndim > 1 else (False,):
            if same_values(oriented(held, transposed), wanted):
                yield name, transposed
                break


def parts_of(model: OnnxModel, array: Array) -> Iterator[tuple[str, Window]]:
    """Initializers of which a part holds the matrix or vector ``array`` cast to their dtype, transposed or not."""
    casts: dict[str, Array] = {}
    for name, value in model.initializers.items():
        dtype, shape = dtype_of(value), shape_of(value)
        if dtype not in FLOATING or len(shape) != array.ndim or not 1 <= array.ndim <= 2 or not array.size:
            continue
        if dtype not in casts:
            casts[dtype] = np.ascontiguousarray(cast(array, dtype))
        held = model.elements(value)
        if window := _part(held, casts[dtype]):
            yield name, window


def _part(held: Array, wanted: Array) -> Window | None:
    """The one part of ``held`` that is ``wanted``: rows or columns of it, transposed or not."""
    word = np.dtype(f"u{held.dtype.itemsize}")
    held, wanted = np.ascontiguousarray(held).view(word), wanted.view(word)
    if held.ndim == 1:
        return find(held[None], wanted[None], 1) and find(held[:, None], wanted[:, None], 0)
    found = {
        window
        for axis in (0, 1)
        for array in (wanted, wanted.T)
        if held.shape[1 - axis] == array.shape[1 - axis]
        and held.shape[axis] > array.shape[axis]
        and (window := find(held, array, axis)) is not None
    }
    return found.pop() if len(found) == 1 else None
