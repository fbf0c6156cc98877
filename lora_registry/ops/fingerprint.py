"""The fingerprint of a base tensor: identity of its values, whatever float type, order and container hold them.

A bfloat16 checkpoint and the float32 ONNX file exported from it agree, because every float type of at most
32 bits widens to float32 without loss; a matrix and its transposed copy do, because the values are taken in
logical axis order (spec section 9).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import UnsupportedError
from lora_registry.format.canonical import encode
from lora_registry.ops.arrays import Array, as_bytes, dtype_name, numpy_dtype

_DOMAIN = b"loreg-base-v1\0"
_BLOCK = 1 << 20  # elements widened at a time

ORIENTED = frozenset({Kind.LINEAR, Kind.EXPERTS, Kind.LOHA, Kind.LOKR})
"""The kinds whose base tensor may be stored either way round; that of all others has one order."""


def logical(target: Target, array: Array) -> Array:
    """A view of the tensor of ``target`` in logical axis order: outputs before inputs, whichever way it is stored.

    Args:
        target: says how the base stores it.
        array: as stored.
    """
    swapped = target.kind in ORIENTED and target.layout[-2:] == ("in", "out")
    return np.swapaxes(array, -1, -2) if swapped else array


def target_fingerprint(target: Target, array: Array) -> Digest:
    """The fingerprint of the base tensor of ``target``, the same for every order in which a base may store it.

    Args:
        target: says how the base stores it.
        array: as stored.

    Raises:
        UnsupportedError: the element type is none of safetensors'.
    """
    return fingerprint(logical(target, array))


def fingerprint(array: Array) -> Digest:
    """Digest of the shape and the values of ``array``, in bounded memory for any strides.

    sha256 of the domain, the shape as canonical JSON, a zero byte, and the values in row-major order: as
    little-endian float32 for float types of at most 32 bits, and for all other types as their own bytes
    after the dtype's name and a zero byte.

    Args:
        array: the values in the order that counts; see :func:`target_fingerprint` for the tensor of a target.

    Raises:
        UnsupportedError: the element type is none of safetensors'.
    """
    return stacked_fingerprint(array.shape, (array,))


def stacked_fingerprint(shape: tuple[int, ...], arrays: Iterable[Array]) -> Digest:
    """The fingerprint of a tensor of ``shape`` of which ``arrays`` are the parts, in row-major order.

    Args:
        shape: of the whole.
        arrays: at least one, of one element type.

    Raises:
        UnsupportedError: the element type is none of safetensors', or there are several.
    """
    state = hashlib.sha256(_DOMAIN + encode(list(shape)) + b"\0")
    first = None
    for array in arrays:
        name = dtype_name(array.dtype)
        widens = DTYPES[name].floating and name != "F64"
        if first is None and not widens:
            state.update(name.encode() + b"\0")
        first = first or name
        if name != first and not (widens and first != "F64" and DTYPES[first].floating):
            raise UnsupportedError(f"a tensor of {first} and {name} has no fingerprint")
        dtype = np.dtype("<f4") if widens else numpy_dtype(name)
        for block in _blocks(array):
            state.update(as_bytes(np.ascontiguousarray(block, dtype=dtype)))
    return Digest(state.hexdigest())


def _blocks(array: Array) -> Iterator[Array]:
    """Views of ``array`` of at most about ``_BLOCK`` elements that follow each other in row-major order."""
    if array.size <= _BLOCK or array.ndim == 0:
        yield array
        return
    rows = _BLOCK * array.shape[0] // array.size
    if rows == 0:  # one row alone is larger than a block
        for row in array:
            yield from _blocks(row)
        return
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]
