"""The weight that a quantized operator of a graph computes with, and how a changed one is stored in its place.

===================== ========================================= =========================================
operator              codes                                     scales and zero points
===================== ========================================= =========================================
MatMulNBits           (out, blocks, bytes), low bits first      (out, blocks), older files flat; packed
                                                                 zero points, or floats
DequantizeLinear      as the float weight: integers of 4 or 8   one, one for each index of ``axis``, or
                      bits, float8                              blocks along it (opset 21)
MatMulInteger         (in, out), 8 bits                         one, or one an output; in a Mul behind it
DynamicQuantizeMatMul (in, out), 8 bits                         one, or one an output
===================== ========================================= =========================================

Definitions: onnx 1.23's DequantizeLinear-23 and MatMulInteger-10, onnxruntime 1.32's ``ContribOperators.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from lora_registry.onnx.model import FLOATING, OnnxModel, dtype_of, shape_of
from lora_registry.onnx.quantized.codes import Codes, Rule
from lora_registry.onnx.refusal import QUANTIZED, RefusalError
from lora_registry.onnx.sites import Axes, integer, reading
from lora_registry.onnx.slots.quantized_seats import QuantizedSeat
from lora_registry.ops.arrays import Array, numpy_dtype
from lora_registry.quantized.grid import Grid

_NBITS = (2, 4, 8)  # widths that fill bytes; 1.32 runs no others
_INTEGERS = {"INT4": (-8, 7), "UINT4": (0, 15), "I8": (-128, 127), "U8": (0, 255)}
_FLOAT8 = {"F8_E4M3": 448.0, "F8_E5M2": 57344.0}
_REDUCED = {"I8": 64, "U8": 127}
"""Largest code of a quantizer that leaves one bit free (``reduce_range``): x86 without VNNI overflows beyond it."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """Initializers of one quantized weight.

    Attributes:
        codes: the elements.
        scales: of the blocks.
        zeros: zero points; None where the graph has none.
        readers: each of these that the weight has, with the node and the input that reads it.
    """

    codes: ir.Value
    scales: ir.Value
    zeros: ir.Value | None
    readers: Mapping[ir.Value, tuple[ir.Node, int]]


@dataclass(frozen=True, slots=True, eq=False)
class GraphWeight:
    """One quantized weight of a graph.

    Attributes:
        form: operator, element type and blocks, in words.
        codes: the matrix.
        axes: what its rows and columns are: ``out`` and ``in`` in some order.
        stored: where it lies.
        bits: of MatMulNBits, bits a code; None for plain tensors.
    """

    form: str
    codes: Codes
    axes: Axes
    stored: Stored
    _model: OnnxModel
    bits: int | None = None

    def values(self, layout: Axes) -> Array:
        """The elements, float32, with axes in the order of ``layout``."""
        values = self.codes.values()
        return values if layout == self.axes else values.T

    def changed(self, wanted: Array, layout: Axes) -> GraphWeight:
        """The same weight with other elements, quantized again.

        Raises:
            InvalidInputError: a value is not finite, or a scale would not be.
        """
        rows = wanted if layout == self.axes else wanted.T
        return replace(self, codes=self.codes.changed(np.ascontiguousarray(rows, np.float32)))

    def tensors(self) -> dict[ir.Value, Array]:
        """Every initializer to its elements, as it stores them."""
        codes, grid = self.codes, self.codes.scales.values
        numbers = grid.astype(numpy_dtype(codes.scale_dtype))
        made = {self.stored.scales: numbers.reshape(shape_of(self.stored.scales))}
        if self.bits is not None:
            return made | self._packed(self.bits)
        made[self.stored.codes] = codes.codes.astype(_numpy(self.stored.codes))
        if self.stored.zeros is not None:
            shape = shape_of(self.stored.zeros)
            zeros = codes.zeros.values.reshape(-1)[: prod(shape)].reshape(shape)  # one may be for all blocks
            made[self.stored.zeros] = zeros.astype(_numpy(self.stored.zeros))
        return made

    def _packed(self, bits: int) -> dict[ir.Value, Array]:
        """Codes and zero points of MatMulNBits; what fills up a block, or a byte, stays as it was."""
        codes, zeros = self.stored.codes, self.stored.zeros
        shape = shape_of(codes)
        fields = _unpacked(elements(self._model, codes), shape[0], bits)
        fields[:, : self.codes.shape[1]] = self.codes.codes
        made = {codes: _pack(fields, bits).reshape(shape)}
        if zeros is not None and dtype_of(zeros) == "U8":
            blocks = _unpacked(elements(self._model, zeros), shape[0], bits)
            blocks[:, : self.codes.zeros.values.shape[1]] = self.codes.zeros.values
            made[zeros] = _pack(blocks, bits).reshape(shape_of(zeros))
        return made


def elements(model: OnnxModel, value: ir.Value) -> Array:
    """The elements of an initializer, of a packed type too."""
    tensor = value.const_value
    if not isinstance(tensor, ir.ExternalTensor) or not tensor.dtype.bitwidth % 8:
        return model.elements(value)
    held = model.data.bytes(tensor).tobytes()
    proto = onnx.TensorProto(data_type=int(tensor.dtype), dims=shape_of(value), raw_data=held)
    array: Array = ir.TensorProtoTensor(proto).numpy()
    return array


Use: TypeAlias = "tuple[ir.Value | None, ir.Node, int]"
"""An initializer, or none, with the node and the number of the input that reads it."""


def weight_of(model: OnnxModel, held: QuantizedSeat) -> GraphWeight:
    """Read the weight of a quantized operator.

    Raises:
        RefusalError: the operator keeps it in a form that loreg does not read.
    """
    node = held.holder
    match node.op_type:
        case "MatMulNBits":
            return _nbits(model, node)
        case "DequantizeLinear":
            return _plain(model, _use(node, 0), _use(node, 1), _use(node, 2), _axes_behind(held))
        case "DynamicQuantizeMatMul":
            return _plain(model, _use(node, 1), _use(node, 2), _use(node, 3), ("in", "out"))
        case "MatMulInteger":
            return _plain(model, _use(node, 1), _scale_behind(node), _use(node, 3), ("in", "out"))
        case _:
            raise RefusalError(QUANTIZED, f"{node.op_type} ({node.name}) holds it in a form that loreg does not read")


# -- MatMulNBits --------------------------------------------------------------------------------------------


def _nbits(model: OnnxModel, node: ir.Node) -> GraphWeight:
    columns, rows = (integer(node, name, 0) for name in ("K", "N"))
    bits, size = integer(node, "bits", 4), integer(node, "block_size", 0)
    values = [_input(node, index) for index in range(5)]
    codes, scales, zeros, order = values[1:5]
    if bits not in _NBITS:
        raise RefusalError(QUANTIZED, f"MatMulNBits ({node.name}) has codes of {bits} bits; loreg reads 2, 4 and 8")
    if order is not None:
        raise RefusalError(QUANTIZED, f"MatMulNBits ({node.name}) has an order of inputs (g_idx), which is not read")
    if codes is None or scales is None or size < 1 or dtype_of(codes) != "U8":
        raise RefusalError(QUANTIZED, f"MatMulNBits ({node.name}) is not as onnxruntime 1.32 defines it")
    blocks = -(-columns // size)
    grid = elements(model, scales)
    fields = _unpacked(elements(model, codes), rows, bits)
    if grid.size != rows * blocks or fields.shape[1] != blocks * size:
        raise RefusalError(QUANTIZED, f"MatMulNBits ({node.name}) has codes or scales of other lengths than it says")
    middle, top = 1 << (bits - 1), (1 << bits) - 1
    points, rule = np.full((rows, blocks), middle, np.float32), Rule.EXTREME
    if zeros is not None and dtype_of(zeros) == "U8":
        points = _unpacked(elements(model, zeros), rows, bits)[:, :blocks].astype(np.float32)
        rule = Rule.EXTREME if (points == middle).all() else Rule.AFFINE
    elif zeros is not None:
        points, rule = elements(model, zeros).astype(np.float32).reshape(rows, blocks), Rule.KEPT
    shape, block = (rows, columns), (1, size)
    held = Codes(
        codes=fields[:, :columns].astype(np.int16),
        scales=Grid(shape, block, grid.astype(np.float32).reshape(rows, blocks)),
        zeros=Grid(shape, block, points),
        low=0,
        high=top,
        rule=rule,
        scale_dtype=dtype_of(scales),
    )
    readers = {value: (node, index) for index, value in enumerate(values) if index and value is not None}
    form = f"MatMulNBits int{bits}, blocks of {size}"
    return GraphWeight(form, held, ("out", "in"), Stored(codes, scales, zeros, readers), model, bits)


def _unpacked(packed: Array, rows: int, bits: int) -> Array:
    """Fields of ``bits`` bits, low first, of the bytes of each row: U8 (rows, fields), writable."""
    octets = np.ascontiguousarray(packed).reshape(rows, -1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    fields: Array = ((octets[..., None] >> shifts) & ((1 << bits) - 1)).astype(np.uint8).reshape(rows, -1)
    return fields


def _pack(fields: Array, bits: int) -> Array:
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    octets = fields.astype(np.uint8).reshape(len(fields), -1, 8 // bits) << shifts
    packed: Array = np.bitwise_or.reduce(octets, axis=-1).astype(np.uint8)
    return packed


# -- plain tensors ------------------------------------------------------------------------------------------


def _plain(model: OnnxModel, of_codes: Use, of_scales: Use, of_zeros: Use, axes: Axes) -> GraphWeight:
    """A weight whose codes lie as its elements would."""
    (codes, node, _), scales, zeros = of_codes, of_scales[0], of_zeros[0]
    said = f"{node.op_type} ({node.name})"
    if codes is None or scales is None or not _is_held(scales) or (zeros is not None and not _is_held(zeros)):
        raise RefusalError(QUANTIZED, f"{said} has scales or zero points that are computed")
    dtype, shape = dtype_of(codes), shape_of(codes)
    if dtype_of(scales) not in FLOATING or (dtype not in _INTEGERS and dtype not in _FLOAT8):
        raise RefusalError(
            QUANTIZED, f"{said} has codes of {dtype} with scales of {dtype_of(scales)}, which is not read"
        )
    along = integer(node, "axis", 1) % 2
    block, blocks = _block(shape, shape_of(scales), along, integer(node, "block_size", 0), said)
    count = tuple(-(-length // size) for length, size in zip(shape, block, strict=True))
    grid = elements(model, scales).astype(np.float32)
    points = np.zeros(1, np.float32) if zeros is None else elements(model, zeros).astype(np.float32)
    if grid.size != count[0] * count[1] or points.size not in (1, grid.size):
        raise RefusalError(QUANTIZED, f"{said} has scales {list(grid.shape)} and zero points {list(points.shape)}")
    array = elements(model, codes)
    spread = np.broadcast_to(points.reshape(-1), grid.size).reshape(count).copy()
    coding = _coding(dtype, array, spread)
    if zeros is not None and points.size < grid.size and coding["rule"] is Rule.AFFINE:
        coding["rule"] = Rule.KEPT  # one zero point cannot follow many ranges
    held = Codes(
        codes=array.astype(np.float32 if dtype in _FLOAT8 else np.int16),
        scales=Grid(shape, block, grid.reshape(count)),
        zeros=Grid(shape, block, spread),
        scale_dtype=dtype_of(scales),
        **coding,
    )
    readers = {use[0]: (use[1], use[2]) for use in (of_codes, of_scales, of_zeros) if use[0] is not None}
    form = f"{node.op_type} {_NAMES[dtype]}, {blocks}"
    return GraphWeight(form, held, axes, Stored(codes, scales, zeros, readers), model)


_NAMES = {
    "INT4": "int4",
    "UINT4": "uint4",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8 e4m3",
    "F8_E5M2": "float8 e5m2",
}


def _coding(dtype: str, codes: Array, zeros: Array) -> dict[str, Any]:
    """Range of the codes, and how new scales are chosen."""
    if dtype in _FLOAT8:
        return {"low": -_FLOAT8[dtype], "high": _FLOAT8[dtype], "rule": Rule.SYMMETRIC, "float8": dtype}
    low, high = _INTEGERS[dtype]
    reduced = _REDUCED.get(dtype)
    if reduced is not None and codes.size and int(np.abs(codes.astype(np.int16)).max()) <= reduced:
        low, high = (-reduced, reduced) if low else (0, reduced)
    if dtype in ("INT4", "UINT4"):
        middle = (zeros == (0 if low else 8)).all()
        return {"low": low, "high": high, "rule": Rule.EXTREME if middle else Rule.AFFINE}
    symmetric = low < 0 and not zeros.any()
    return {"low": -high if symmetric else low, "high": high, "rule": Rule.SYMMETRIC if symmetric else Rule.AFFINE}


def _block(
    shape: tuple[int, ...], scales: tuple[int, ...], along: int, size: int, said: str
) -> tuple[tuple[int, int], str]:
    """Rows and columns of a block, and that in words."""
    rows, columns = shape
    if size and len(scales) == 2:
        return ((size, 1) if along == 0 else (1, size)), f"blocks of {size}"
    if scales in ((), (1,)):
        return (rows, columns), "per tensor"
    if len(scales) == 1 and scales[0] == shape[along] and not size:
        return ((1, columns) if along == 0 else (rows, 1)), "per channel"
    raise RefusalError(QUANTIZED, f"{said} has scales {list(scales)} for codes {list(shape)}")


def _numpy(value: ir.Value) -> np.dtype[np.generic]:
    tensor = value.const_value
    assert tensor is not None
    dtype: np.dtype[np.generic] = tensor.dtype.numpy()
    return dtype


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _is_held(value: ir.Value) -> bool:
    return value.is_initializer() and not value.is_graph_input() and value.const_value is not None


def _use(node: ir.Node, index: int) -> Use:
    return _input(node, index), node, index


def _scale_behind(node: ir.Node) -> Use:
    """The scales of the codes of MatMulInteger: its product → Cast → Mul by (scale of x · scales)."""
    cast = next(iter(node.outputs[0].uses())).node
    last = next(iter(cast.outputs[0].uses())).node
    other = next((value for value in last.inputs if value is not None and value is not cast.outputs[0]), None)
    product = other.producer() if other is not None else None
    uses = [_use(product, index) for index in range(len(product.inputs))] if product is not None else []
    held = [use for use in uses if use[0] is not None and _is_held(use[0])]
    return held[0] if len(held) == 1 and product is not None and product.op_type == "Mul" else (None, node, 0)


def _axes_behind(held: QuantizedSeat) -> Axes:
    """What the axes of a dequantized weight are, by the operator that reads it, perhaps transposed."""
    value, swapped = held.holder.outputs[0], False
    while True:
        usage = next(iter(value.uses()))
        if usage.node.op_type != "Transpose":
            break
        value, swapped = usage.node.outputs[0], not swapped
    axes = reading(usage.node, usage.idx, 2)[1]
    assert axes is not None  # or there would be no seat
    return axes[::-1] if swapped else axes
