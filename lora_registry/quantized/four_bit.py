"""nf4 and fp4 of bitsandbytes: sixteen values, scaled by the largest of each block (Dettmers et al. 2023, QLoRA).

What is stored, as bitsandbytes 0.50 writes it (``QuantState.as_dict(packed=True)``)::

    W                                       two elements a byte, the first in the upper half
    W.absmax                                F32, one a block; with double quantization U8
    W.quant_map                             F32, the sixteen values
    W.nested_absmax, W.nested_quant_map     of the absmax, where that is quantized itself
    W.quant_state.bitsandbytes__nf4         a JSON document as bytes: shape, dtype, sizes of the blocks
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import isfinite, prod

import numpy as np

from lora_registry.adapter import Json
from lora_registry.dtypes import BY_TORCH
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array
from lora_registry.quantized.weight import Quantization, Scheme, Tensors, integer, require

_STATE = ".quant_state.bitsandbytes__"
_TYPES = ("nf4", "fp4")


@dataclass(frozen=True, slots=True, eq=False)
class Nested:
    """Scales that are quantized themselves: 256 values, scaled by block, around an offset.

    Attributes:
        codes: uint8, one a scale.
        values: float32, 256 values.
        absmax: float32, one a block of scales.
        offset: what is added to each scale.
        block: scales of a block.
    """

    codes: Array
    values: Array
    absmax: Array
    offset: np.float32
    block: int

    def spread(self, first: int, last: int) -> Array:
        """What each scale from number ``first`` to before ``last`` is multiplied by."""
        result: Array = self.absmax[np.arange(first, last) // self.block]
        return result

    def scales(self) -> Array:
        """All scales: float32."""
        result: Array = self.values[self.codes] * self.spread(0, len(self.codes)) + self.offset
        return result


@dataclass(frozen=True, slots=True, eq=False)
class FourBitWeight:
    """A weight in nf4 or fp4.

    Attributes:
        kind: which of the two.
        shape: of the weight.
        dtype: of the weight before it was quantized, and of what bitsandbytes dequantizes to.
        parts: names of the stored tensors.
        packed: uint8, two elements a byte.
        absmax: float32, one a block, with the second quantization undone.
        values: float32, the sixteen values.
        block: elements of a block.
        nested: the scales as they are stored where they are quantized themselves.
    """

    kind: str
    shape: tuple[int, ...]
    dtype: str
    parts: tuple[str, ...]
    packed: Array
    absmax: Array
    values: Array
    block: int
    nested: Nested | None = None

    def rows(self, first: int, last: int) -> Array:
        """Elements are counted through the whole weight: a block may go over from one row to the next."""
        start, stop = first * self.shape[-1], last * self.shape[-1]
        octets = self.packed[start // 2 : -(-stop // 2)]
        codes = np.stack((octets >> 4, octets & 15), axis=-1).reshape(-1)[start % 2 :][: stop - start]
        low = start // self.block
        scales = np.repeat(self.absmax[low : -(-stop // self.block)], self.block)
        result: Array = self.values[codes] * scales[start - low * self.block :][: stop - start]
        return result.reshape(last - first, -1)


def find(tensors: Tensors, settings: Mapping[str, Json], dtype: str) -> Quantization | None:
    """The nf4 or fp4 weights, by their state; None where there are none.

    Raises:
        InvalidInputError: a part is missing, or the parts contradict each other.
        UnsupportedError: a state that loreg does not know; or both types in one checkpoint.
    """
    del settings, dtype  # each weight has a state of its own
    known = frozenset(tensors.names())
    weights, schemes = {}, {}
    for key in sorted(name for name in known if _STATE in name):
        name, _, kind = key.partition(_STATE)
        if kind not in _TYPES:
            raise UnsupportedError(f"{name}: bitsandbytes' type {kind!r} is not one that loreg reads: nf4 or fp4")
        weights[name], schemes[name] = _read(tensors, known, name, kind)
    if not weights:
        return None
    scheme = next(iter(schemes.values()))
    if any(other.name != scheme.name for other in schemes.values()):
        raise UnsupportedError("some weights are nf4 and some fp4, and there is no name for that")
    return Quantization(scheme, weights)


def _read(tensors: Tensors, known: frozenset[str], name: str, kind: str) -> tuple[FourBitWeight, Scheme]:
    get = partial(require, tensors, known)
    state = _state(get(f"{name}{_STATE}{kind}", ("U8",), axes=1).tobytes(), name)
    shape, block = state.get("shape"), integer(state, "blocksize")
    dtype = BY_TORCH.get(str(state.get("dtype")))
    if not isinstance(shape, list) or not all(isinstance(axis, int) and axis > 0 for axis in shape) or not shape:
        raise InvalidInputError(f"{name}: its state has no shape")
    if block is None or block <= 0 or dtype is None or not dtype.is_wide_float or state.get("quant_type") != kind:
        raise InvalidInputError(f"{name}: its state is not one of a {kind} weight")
    values = get(f"{name}.quant_map", ("F32",), axes=1)
    absmax = f"{name}.absmax"
    parts = [name, absmax, f"{name}.quant_map", f"{name}{_STATE}{kind}"]
    nested = None
    if "nested_blocksize" in state:
        nested = _nested(tensors, known, name, state)
        scales = nested.scales()
        parts += [f"{name}.nested_absmax", f"{name}.nested_quant_map"]
    else:
        scales = get(absmax, ("F32",), axes=1)
    lengths = tuple(int(str(axis)) for axis in shape)
    if name not in known:
        raise InvalidInputError(f"{name} is missing, and its state is there")
    packed = tensors.array(name).reshape(-1).view(np.uint8)  # FSDP stores the bytes under another type
    count = prod(lengths)
    if len(packed) != -(-count // 2) or len(scales) != -(-count // block) or len(values) != 16:
        raise InvalidInputError(f"{name}: {len(packed)} bytes and {len(scales)} blocks are no {kind} of {shape}")
    weight = FourBitWeight(kind, lengths, dtype.name, tuple(parts), packed, scales, values, block, nested)
    return weight, Scheme(kind, {"block": block, "double": "nested_blocksize" in state})


def _state(document: bytes, name: str) -> dict[str, Json]:
    try:
        state = json.loads(document)
    except ValueError:
        raise InvalidInputError(f"{name}: its state is not JSON") from None
    if not isinstance(state, dict):
        raise InvalidInputError(f"{name}: its state is not a JSON object")
    return state


def _nested(tensors: Tensors, known: frozenset[str], name: str, state: Mapping[str, Json]) -> Nested:
    block, offset = integer(state, "nested_blocksize"), state.get("nested_offset")
    if block is None or block <= 0 or not isinstance(offset, int | float) or not isfinite(offset):
        raise InvalidInputError(f"{name}: its state does not say how its absmax is quantized")
    codes = require(tensors, known, f"{name}.absmax", ("U8",), axes=1)
    values = require(tensors, known, f"{name}.nested_quant_map", ("F32",), axes=1)
    scales = require(tensors, known, f"{name}.nested_absmax", ("F32",), axes=1)
    if len(scales) != -(-len(codes) // block) or len(values) != 256:
        raise InvalidInputError(f"{name}: {len(codes)} absmax have {len(scales)} blocks of {block}")
    return Nested(codes, values, scales, np.float32(offset), block)
