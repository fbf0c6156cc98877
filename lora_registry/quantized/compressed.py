"""compressed-tensors, what llm-compressor writes: packed integers, plain int8, and float8.

====================================== ==================================================================
format                                 stored in a module
====================================== ==================================================================
``pack-quantized``                     ``weight_packed`` I32, dense along the inputs, each element plus half
                                       its range; ``weight_shape``; ``weight_scale``; ``weight_zero_point``
``int-quantized``, ``naive-quantized`` ``weight`` I8, ``weight_scale``, ``weight_zero_point``
``float-quantized``                    ``weight`` F8_E4M3, ``weight_scale``
====================================== ==================================================================

Element = (q - zero) · scale, rounded once to the dtype of the scale (compressed-tensors 0.20). Packed zero points are
dense along the outputs. Scales are for the tensor, for each row, for groups of inputs, or for blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Json
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array
from lora_registry.quantized.fp8 import FLOAT8
from lora_registry.quantized.grid import Grid
from lora_registry.quantized.packing import unpack
from lora_registry.quantized.weight import Quantization, Scheme, Tensors, integer, require, table

_PACKED = "pack-quantized"
_FORMATS = frozenset({_PACKED, "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", "dense"})
_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
_FLOATS = ("F16", "BF16", "F32")


@dataclass(frozen=True, slots=True, eq=False)
class CompressedWeight:
    """A weight in one of the formats above.

    Attributes:
        shape: (out, in).
        dtype: what compressed-tensors decompresses to.
        parts: names of the stored tensors; that of the zero points comes last, where there are some.
        stored: the elements as they are stored: packed words, integers or float8, a row for each output.
        bits: of a packed element; 0 where none is packed.
        scales: float32.
        scale_dtype: element type that the scales are stored in, by safetensors' name.
        zeros: integers; None where zero is 0.
        stored_zeros: the same as they are stored.
    """

    shape: tuple[int, ...]
    dtype: str
    parts: tuple[str, ...]
    stored: Array
    bits: int
    scales: Grid
    scale_dtype: str
    zeros: Grid | None
    stored_zeros: Array | None

    def codes(self, first: int, last: int) -> Array:
        """Rows of integers or of float8."""
        if not self.bits:
            return self.stored[first:last]
        return unpack(self.stored[first:last], self.bits, self.shape[1]).astype(np.int16) - (1 << (self.bits - 1))

    def rows(self, first: int, last: int) -> Array:
        """Rows of outputs."""
        result: Array = self.codes(first, last).astype(np.float32)
        if self.zeros is not None:
            result -= self.zeros.rows(first, last)
        result *= self.scales.rows(first, last)
        return result


def find(tensors: Tensors, settings: Mapping[str, Json], dtype: str) -> Quantization | None:
    """The compressed weights, by the ``weight_scale`` beside them; None where there are none.

    Raises:
        InvalidInputError: a part is missing, or the shapes contradict each other.
        UnsupportedError: a format, a transform or a sparsity that loreg does not read.
    """
    groups = [table(table(settings, "config_groups"), name) for name in table(settings, "config_groups")]
    _refuse(settings, groups)
    known = frozenset(tensors.names())
    module = _Module(tensors, known, dtype, [table(group, "weights") for group in groups])
    modules = sorted(name.removesuffix(".weight_scale") for name in known if name.endswith(".weight_scale"))
    weights = {f"{name}.weight": module.read(name) for name in modules}
    if not weights:
        return None
    dropped = {f"{name}.{each}" for name in modules for each in _ACTIVATIONS} & known
    kinds = sorted({f"{table(g, 'weights').get('type')}{table(g, 'weights').get('num_bits')}" for g in groups})
    scheme = Scheme("compressed-tensors", {"format": settings.get("format"), "weights": "+".join(kinds)})
    return Quantization(scheme, weights, frozenset(dropped))


def _refuse(settings: Mapping[str, Json], groups: list[Mapping[str, Json]]) -> None:
    formats = {str(each["format"]) for each in (settings, *groups) if each.get("format") is not None}
    if formats - _FORMATS:
        raise UnsupportedError(
            f"compressed-tensors in the format {min(formats - _FORMATS)!r}, which loreg does not read"
        )
    sparsity = table(settings, "sparsity_config").get("format")
    if sparsity not in (None, "dense"):
        raise UnsupportedError(f"compressed-tensors with the sparsity {sparsity!r}, which loreg does not read")
    if table(table(settings, "transform_config"), "config_groups"):
        raise UnsupportedError(
            "compressed-tensors with transforms: the weights are rotated, and a change to them is not"
        )


def _block(scheme: Mapping[str, Json]) -> tuple[int, int] | None:
    """Rows and columns of the blocks of a scheme that has any; a group of inputs is a block of one row."""
    group, block = integer(scheme, "group_size"), scheme.get("block_structure")
    if group is not None and group > 0:
        return 1, group
    if isinstance(block, list) and len(block) == 2 and all(isinstance(each, int) and each > 0 for each in block):
        return int(str(block[0])), int(str(block[1]))
    return None


class _Module:
    """Reads the parts of one module after the other."""

    def __init__(self, tensors: Tensors, known: frozenset[str], dtype: str, schemes: list[Mapping[str, Json]]) -> None:
        self._tensors = tensors
        self._known = known
        self._dtype = dtype
        self._bits = {bits for scheme in schemes if (bits := integer(scheme, "num_bits")) is not None}
        self._blocks = [block for scheme in schemes if (block := _block(scheme)) is not None]

    def read(self, module: str) -> CompressedWeight:
        if f"{module}.weight_g_idx" in self._known:
            raise UnsupportedError(
                f"{module}: its inputs are in groups out of order (g_idx), which loreg does not read"
            )
        packed = f"{module}.weight_packed" in self._known
        name = f"{module}.weight_packed" if packed else f"{module}.weight"
        parts = [name, f"{module}.weight_scale"]
        if packed:
            parts.append(f"{module}.weight_shape")
            stored, shape, bits = self._packed(module)
        else:
            stored = require(self._tensors, self._known, name, ("I8", *FLOAT8), axes=2)
            shape, bits = stored.shape, 0
        scale = parts[1]
        if self._tensors.dtype(scale) not in _FLOATS:
            raise UnsupportedError(f"{scale} holds {self._tensors.dtype(scale)}; loreg reads F16, BF16 or F32 there")
        scales = self._grid(shape, self._tensors.array(scale).astype(np.float32), scale)
        zeros = stored_zeros = None
        if f"{module}.weight_zero_point" in self._known:
            parts.append(f"{module}.weight_zero_point")
            zeros = self._zeros(parts[-1], scales, bits)
            stored_zeros = self._tensors.array(parts[-1])
        own = self._tensors.dtype(scale)
        dtype = own if DTYPES[own].size == 2 else self._dtype
        return CompressedWeight(shape, dtype, tuple(parts), stored, bits, scales, own, zeros, stored_zeros)

    def _packed(self, module: str) -> tuple[Array, tuple[int, ...], int]:
        words = require(self._tensors, self._known, f"{module}.weight_packed", ("I32",), axes=2)
        lengths = require(self._tensors, self._known, f"{module}.weight_shape", ("I64", "I32"), axes=1)
        shape = tuple(int(length) for length in lengths)
        fitting = [bits for bits in self._bits if len(shape) == 2 and -(-shape[1] * bits // 32) == words.shape[1]]
        if len(shape) != 2 or shape[0] != words.shape[0] or len(fitting) != 1 or not 1 <= fitting[0] <= 8:
            raise InvalidInputError(f"{module}: {list(words.shape)} words are not a weight of {list(shape)}")
        return words, shape, fitting[0]

    def _zeros(self, name: str, scales: Grid, bits: int) -> Grid:
        dtype = self._tensors.dtype(name)
        if dtype not in ("I8", "I32", *FLOAT8):
            raise UnsupportedError(f"{name} holds {dtype}; loreg reads I8, or I32 of packed weights")
        stored = self._tensors.array(name)
        if bits and dtype == "I32" and stored.ndim == 2:
            if len(stored) != -(-scales.shape[0] * bits // 32):
                raise InvalidInputError(
                    f"{name}: {len(stored)} words are not the zero points of {scales.shape[0]} rows"
                )
            fields = unpack(stored.T, bits, scales.shape[0]).astype(np.int16)
            stored = fields.T - (1 << (bits - 1))
        return self._grid(scales.shape, stored.astype(np.float32), name)

    def _grid(self, shape: tuple[int, ...], values: Array, name: str) -> Grid:
        grid = Grid.over(shape, values, self._blocks)
        if grid is None:
            raise InvalidInputError(f"{name}: shape {list(values.shape)} does not fit a weight of {list(shape)}")
        return grid
