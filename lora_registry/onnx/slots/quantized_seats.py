"""Seats beside quantized operators: a branch needs their input and their output, and never the weight itself.

===================== ==================================================================================
MatMulNBits           com.microsoft; blocks of 2 to 8 bits, one operator
MatMulBnb4            com.microsoft; the blocks of bitsandbytes
MatMulInteger         between DynamicQuantizeLinear and Cast, Mul (``quantize_dynamic``)
DynamicQuantizeMatMul com.microsoft; what ONNX Runtime makes of that
DequantizeLinear      in front of MatMul, Gemm, Conv or Gather (QDQ)
GatherBlockQuantized  com.microsoft; rows of an embedding
===================== ==================================================================================

As onnxruntime 1.32 writes and runs them. Names: what its quantizers put behind the names of weights and nodes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from lora_registry.adapter import Kind
from lora_registry.onnx.manifest import Manifest
from lora_registry.onnx.model import FLOATING, OnnxModel, dtype_of, shape_of
from lora_registry.onnx.names import Names
from lora_registry.onnx.scope import scope_of
from lora_registry.onnx.sites import Read, Site, reading
from lora_registry.onnx.slots.seat import Seat, outlet_of

_WEIGHT_SUFFIX = re.compile(r"(_DQ_Q[248]|_Q[248]|_quantized)$")
_NODE_SUFFIX = re.compile(r"_(Q[248]|quant|DQ_Q[248])$")
_KIND = {Read.MATRIX: Kind.LINEAR, Read.ROWS: Kind.EMBEDDING, Read.KERNEL: Kind.CONV}


@dataclass(frozen=True, slots=True)
class QuantizedSeat:
    """One quantized operator, and what its names say that it holds.

    Attributes:
        seat: where a branch goes.
        kind: what kind of target it has a place for.
        names: what the tensor may be called, best first.
        width: length of ``in``.
        height: length of ``out``.
        dtype: element type of the activations.
        transposed: whether the checkpoint stores the tensor the other way round; None where nothing tells.
        codes: the quantized elements.
        holder: the operator that reads them.
    """

    seat: Seat
    kind: Kind
    names: tuple[str, ...]
    width: int
    height: int
    dtype: str
    transposed: bool | None
    codes: ir.Value
    holder: ir.Node


def quantized_seats(model: OnnxModel, names: Names) -> Iterator[QuantizedSeat]:
    """Every quantized operator of a graph beside which a branch can run."""
    noted: dict[str, tuple[str, bool | None]] = {}
    manifest = Manifest.of(model.ir.metadata_props)
    for tensor, place in manifest.tensors.items() if manifest is not None else ():
        noted[place.initializer] = (tensor, place.transposed)
    for name, sites in names.sites.items():
        for site in sites:
            if site.read is not Read.QUANTIZED or not site.path:
                continue
            found = _found(site)
            if found is None:
                continue
            seat, kind, width, height, dtype = found
            plain = _WEIGHT_SUFFIX.sub("", name)
            tensor, transposed = noted.get(plain, ("", None))
            told = (tensor, *_by_scope(seat.operator, site), plain)
            candidates = tuple(dict.fromkeys(each for each in told if each))
            codes, holder = model.initializers[name], site.path[-1][0]
            yield QuantizedSeat(seat, kind, candidates, width, height, dtype, transposed, codes, holder)


Found = tuple[Seat, Kind, int, int, str]


def _found(site: Site) -> Found | None:
    node, index = site.path[-1]
    match node.op_type, index:
        case (("MatMulNBits" | "MatMulBnb4"), 1):
            width, height = (int(node.attributes[name].as_int()) for name in ("K", "N"))
            return _direct(node, 0, Kind.LINEAR, (width, height), _dtype(node.inputs[2]))
        case "DynamicQuantizeMatMul", 1:
            shape = shape_of(_held(node.inputs[1]))
            return _direct(node, 0, Kind.LINEAR, shape, _dtype(node.inputs[2])) if len(shape) == 2 else None
        case "MatMulInteger", 1:
            return _dynamic(node)
        case "GatherBlockQuantized", 0:
            rows, packed = shape_of(_held(node.inputs[0])), shape_of(_held(node.inputs[2]))
            block = node.attributes.get("block_size")
            size = int(block.as_int()) if block is not None else 128
            width = min(packed[-1] * size, 2 * rows[-1]) if len(packed) == 2 else 0
            return _direct(node, 1, Kind.EMBEDDING, (rows[0], width), _dtype(node.inputs[2])) if width else None
        case "DequantizeLinear", 0:
            return _dequantized(node)
    return None


def _direct(node: ir.Node, index: int, kind: Kind, axes: tuple[int, ...], dtype: str | None) -> Found | None:
    if dtype is None:
        return None
    return Seat(node, node, index, outlet_of(node.outputs[0])), kind, axes[0], axes[1], dtype


def _dynamic(node: ir.Node) -> Found | None:
    """The chain x → DynamicQuantizeLinear → MatMulInteger → Cast → Mul: the branch spans all four."""
    source = node.inputs[0]
    quantizer = source.producer() if source is not None else None
    shape = shape_of(_held(node.inputs[1]))
    if quantizer is None or quantizer.op_type != "DynamicQuantizeLinear" or len(shape) != 2:
        return None
    value = node.outputs[0]
    for wanted in ("Cast", "Mul"):
        uses = list(value.uses())
        if len(uses) != 1 or uses[0].node.op_type != wanted:
            return None
        value = uses[0].node.outputs[0]
    return Seat(node, quantizer, 0, outlet_of(value)), Kind.LINEAR, shape[0], shape[1], "F32"


def _dequantized(node: ir.Node) -> Found | None:
    """The one operator that reads a dequantized weight, as it is or transposed."""
    shape, value, swapped = shape_of(_held(node.inputs[0])), node.outputs[0], False
    dtype = _dtype(node.inputs[1])
    while True:
        uses = list(value.uses())
        if len(uses) != 1 or dtype is None:
            return None
        reader, index = uses[0].node, uses[0].idx
        if reader.op_type != "Transpose" or len(shape) != 2:
            break
        value, swapped = reader.outputs[0], not swapped
    read, axes = reading(reader, index, len(shape))
    if read not in _KIND or axes is None or (read is Read.MATRIX and index != 1):
        return None
    axes = axes[::-1] if swapped else axes
    lengths = dict(zip(axes, shape, strict=True))
    if read is Read.KERNEL or len(shape) != 2:
        return None
    seat = Seat(reader, reader, 1 if read is Read.ROWS else 0, outlet_of(reader.outputs[0]))
    return seat, _KIND[read], lengths["in"], lengths["out"], dtype


def _by_scope(node: ir.Node, site: Site) -> Iterator[str]:
    """Names by the module that the node, or what it was before it was quantized, came from."""
    scope = site.scope or scope_of(node)
    if scope is not None:
        yield f"{scope.module}.weight"
        return
    parts = _NODE_SUFFIX.sub("", node.name or "").split("/")
    if len(parts) > 2 and not parts[0] and parts[-1] in ("MatMul", "Gemm", "Gather"):
        yield f"{'.'.join(parts[1:-1])}.weight"


def _held(value: ir.Value | None) -> ir.Value:
    assert value is not None
    return value


def _dtype(value: ir.Value | None) -> str | None:
    """Element type of the scales of a quantized weight, which is that of the activations."""
    dtype = dtype_of(value) if value is not None and value.const_value is not None else None
    return dtype if dtype in FLOATING else None


def by_name(seats: Iterator[QuantizedSeat]) -> Mapping[str, list[QuantizedSeat]]:
    """Every name to the seats that have it."""
    found: dict[str, list[QuantizedSeat]] = {}
    for seat in seats:
        for name in seat.names:
            found.setdefault(name, []).append(seat)
    return found
