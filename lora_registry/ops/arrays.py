"""Tensors as numpy arrays, and back; bfloat16 and float8 come from ml_dtypes."""

from __future__ import annotations

from typing import Any, TypeAlias

import ml_dtypes
import numpy as np

from lora_registry.adapter import Tensor
from lora_registry.dtypes import BY_NUMPY, DTYPES
from lora_registry.errors import UnsupportedError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""An array of any shape and element type; docstrings say which."""

_ML_DTYPES = frozenset({"bfloat16", "float8_e4m3fn", "float8_e5m2"})


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The little-endian numpy type of a safetensors dtype; KeyError for an unknown name."""
    numpy = DTYPES[name].numpy
    return np.dtype(getattr(ml_dtypes, numpy)) if numpy in _ML_DTYPES else np.dtype(numpy).newbyteorder("<")


def dtype_name(dtype: np.dtype[Any]) -> str:
    """The safetensors name of a numpy type.

    Raises:
        UnsupportedError: safetensors has no such type, or loreg does not carry it.
    """
    known = BY_NUMPY.get(dtype.name)
    if known is None:
        raise UnsupportedError(f"elements of type {dtype.name} have no place in a safetensors file")
    return known.name


def to_array(tensor: Tensor) -> Array:
    """The elements of ``tensor`` as a read-only array over the same bytes; nothing is copied."""
    array = np.frombuffer(tensor.data, dtype=numpy_dtype(tensor.dtype)) if tensor.nbytes else _empty(tensor)
    return array.reshape(tensor.shape)


def _empty(tensor: Tensor) -> Array:
    return np.empty(0, dtype=numpy_dtype(tensor.dtype))  # np.frombuffer refuses an empty buffer


def from_array(array: Array) -> Tensor:
    """A tensor over the elements of ``array``; copied only where they are not in row-major, little-endian order.

    Raises:
        UnsupportedError: the element type has no place in a safetensors file.
    """
    name = dtype_name(array.dtype)
    ordered = np.ascontiguousarray(array, dtype=numpy_dtype(name))
    return Tensor(name, array.shape, as_bytes(ordered))


def as_bytes(array: Array) -> memoryview:
    """The bytes of a row-major array. ml_dtypes' types export no buffer themselves, hence the view."""
    return array.reshape(-1).view(np.uint8).data


def widened(array: Array) -> Array:
    """Float types of at most 32 bits as float32, without loss; everything else as it is."""
    name = dtype_name(array.dtype)
    return array.astype(np.float32, copy=False) if DTYPES[name].floating and name != "F64" else array


def round_to(array: Array, name: str) -> Array:
    """Round a float array once, to nearest, ties to even, to the dtype ``name``.

    The array itself is returned where it has that type already. Overflow becomes infinity (NaN in F8_E4M3,
    which has no infinity); the merge looks for both and refuses.
    """
    dtype = numpy_dtype(name)
    if array.dtype == dtype:
        return array
    if array.dtype == np.float64 and dtype.name in _ML_DTYPES:
        # ml_dtypes goes from float64 through float32, which rounds twice.
        array = _to_odd(array)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(dtype)


def _to_odd(array: Array) -> Array:
    """float64 to float32, rounded to odd: rounding the result once more is as good as rounding once.

    Boldo and Melquiond 2005, "When double rounding is odd": true for every type at least two bits narrower.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        near = array.astype(np.float32)
        exact = near.astype(np.float64)
        bits = near.view(np.uint32) - (np.abs(exact) > np.abs(array)).astype(np.uint32)  # toward zero
        bits |= (np.isfinite(array) & (exact != array)).astype(np.uint32)
    return bits.view(np.float32)
