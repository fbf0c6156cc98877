"""Who reads an initializer, and how: the consumer analysis on which every patch rests.

A *site* is one use of an initializer by an operator that computes with it. Operators that only pass it on or
reorder its axes (Identity, Cast, Transpose, the choice of one expert by Gather) are followed. The orientation of
a matrix is read from the operator and never from its shape: a square matrix fits both ways. Operator
semantics are those of the ONNX specification, opset 7 to 25.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeAlias

import onnx_ir as ir

from lora_registry.onnx.model import shape_of
from lora_registry.onnx.scope import Scope, scope_of

Axes: TypeAlias = "tuple[str, ...]"
Hop: TypeAlias = "tuple[ir.Node, int]"

_STANDARD = ("", "ai.onnx")
_LONGEST_CHAIN = 32
_SHAPE_ONLY = frozenset({"Shape", "Size"})  # they never look at a value
_KERNEL_AXES = ("k", "k", "k")


class Read(StrEnum):
    """What an operator takes an initializer for."""

    MATRIX = "matrix"
    ROWS = "rows"
    KERNEL = "kernel"
    BIAS = "bias"
    SCALE = "scale"
    QUANTIZED = "quantized"
    OTHER = "other"


PARAMETER = {
    Read.MATRIX: "weight",
    Read.ROWS: "weight",
    Read.KERNEL: "weight",
    Read.SCALE: "weight",
    Read.QUANTIZED: "weight",
    Read.BIAS: "bias",
}
"""What PyTorch's own modules call the parameter that is read so."""

_NORMALIZATIONS = {  # operator: input that scales, input that shifts
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "BatchNormalization": (1, 2),
    "SimplifiedLayerNormalization": (1, None),
    "RMSNormalization": (1, None),
    "SkipSimplifiedLayerNormalization": (2, None),
    "SkipLayerNormalization": (2, 3),
}

_PACKED_BIAS = frozenset({("Attention", 2), ("MultiHeadAttention", 3)})
"""com.microsoft, as of ONNX Runtime 1.32: queries, keys and values one behind the other."""

QUANTIZED_OPERATORS = frozenset(
    {
        "MatMulNBits",
        "MatMulBnb4",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "DynamicQuantizeMatMul",
        "QLinearMatMul",
        "QGemm",
        "QLinearConv",
        "ConvInteger",
        "QAttention",
        "QMoE",
        "GatherBlockQuantized",
        "DequantizeLinear",
    }
)


@dataclass(frozen=True, slots=True)
class Site:
    """One use of an initializer.

    Attributes:
        path: the nodes from the initializer to the operator, each with the index of the input that is
            used; empty where the initializer is itself an output of the graph.
        read: what the operator takes it for.
        axes: what each axis of the *initializer* means: ``in``, ``out``, ``expert``, ``k``; None where the
            operator does not say.
        scope: the module that the operator came from, where the exporter wrote it down.
    """

    path: tuple[Hop, ...]
    read: Read
    axes: Axes | None
    scope: Scope | None

    @property
    def operator(self) -> str:
        """The operator that computes with the initializer, as shown to people."""
        if not self.path:
            return "graph output"
        node, index = self.path[-1]
        domain = "" if node.domain in _STANDARD else f"{node.domain}."
        return f"{domain}{node.op_type} input {index}"

    @property
    def node(self) -> str:
        """Name of the operator's node."""
        return (self.path[-1][0].name or "") if self.path else ""


def sites_of(value: ir.Value) -> tuple[Site, ...]:
    """Every use of the initializer ``value``, in subgraphs too."""
    return tuple(_walk(value, tuple(range(len(shape_of(value)))), ()))


def _walk(value: ir.Value, view: tuple[int, ...], path: tuple[Hop, ...]) -> Iterator[Site]:
    if value.is_graph_output():
        yield Site(path, Read.OTHER, None, None)
    for usage in value.uses():
        node, index = usage.node, usage.idx
        if node.op_type in _SHAPE_ONLY:
            continue
        onward = _followed(node, index, view) if len(path) < _LONGEST_CHAIN else None
        if onward is not None:
            yield from _walk(node.outputs[0], onward, (*path, (node, index)))
            continue
        read, labels = reading(node, index, len(view))
        yield Site((*path, (node, index)), read, _relabel(labels, view), scope_of(node))


def _relabel(labels: Axes | None, view: tuple[int, ...]) -> Axes | None:
    """Labels of the initializer's axes, from those of a view of it."""
    if labels is None:
        return None
    named = dict(zip(view, labels, strict=True))
    # An axis that the view no longer has was consumed by the choice of one expert.
    rank = max(view, default=-1) + 1
    return tuple(named.get(axis, "expert") for axis in range(rank))


def _followed(node: ir.Node, index: int, view: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes of the node's output as axes of the initializer, where the node only passes it on."""
    if node.domain not in _STANDARD or index != 0 or len(node.outputs) != 1:
        return None
    if node.op_type in ("Identity", "Cast"):
        return view
    if node.op_type == "Transpose":
        order = _integers(node, "perm") or tuple(reversed(range(len(view))))
        return tuple(view[axis] for axis in order) if sorted(order) == list(range(len(view))) else None
    if node.op_type == "Gather" and len(view) == 3 and view[0] == 0 and integer(node, "axis", 0) in (0, -3):
        indices = node.inputs[1]
        chosen = None if indices is None or indices.shape is None else len(indices.shape)
        if chosen == 0:
            return view[1:]
        if chosen == 1:
            return view
    return None


def reading(node: ir.Node, index: int, rank: int) -> tuple[Read, Axes | None]:
    """What ``node`` takes its input ``index`` of ``rank`` axes for, and the meaning of those axes."""
    if node.op_type in QUANTIZED_OPERATORS:
        return Read.QUANTIZED, None
    if node.op_type in _NORMALIZATIONS:
        scale, bias = _NORMALIZATIONS[node.op_type]
        kind = Read.SCALE if index == scale else Read.BIAS if index == bias else Read.OTHER
        return kind, ("out",) if rank == 1 and kind is not Read.OTHER else None
    if node.op_type in ("Gemm", "FusedMatMul", "MatMul"):
        return _product(node, index, rank)
    if node.domain not in _STANDARD:
        return _fused(node, index, rank)
    if node.op_type == "Conv":
        if index == 1 and 3 <= rank <= 5:
            return Read.KERNEL, ("out", "in", *_KERNEL_AXES[: rank - 2])
        return (Read.BIAS, ("out",)) if index == 2 else (Read.OTHER, None)
    if node.op_type == "Gather" and index == 0 and rank == 2 and integer(node, "axis", 0) in (0, -2):
        return Read.ROWS, ("in", "out")
    if node.op_type == "Einsum":
        return _einsum(node, index, rank)
    if node.op_type in ("Add", "Mul") and rank == 1:
        return (Read.BIAS if node.op_type == "Add" else Read.SCALE), ("out",)
    return Read.OTHER, None


def _product(node: ir.Node, index: int, rank: int) -> tuple[Read, Axes | None]:
    """MatMul, Gemm and ORT's FusedMatMul: the right factor of x·W holds (in, out), the left one of W·x (out, in)."""
    if node.op_type == "Gemm" and index == 2:
        return (Read.BIAS, ("out",)) if rank == 1 else (Read.OTHER, None)
    if index > 1 or rank not in (2, 3):
        return Read.OTHER, None
    swapped = node.op_type != "MatMul" and bool(integer(node, "transB" if index else "transA", 0))
    matrix = ("in", "out") if bool(index) != swapped else ("out", "in")
    return Read.MATRIX, matrix if rank == 2 else ("expert", *matrix)


def _fused(node: ir.Node, index: int, rank: int) -> tuple[Read, Axes | None]:
    """ORT's attention: ``Attention`` multiplies its input by a packed matrix, and others add a packed bias."""
    if node.op_type == "Attention" and index == 1 and rank == 2:
        return Read.MATRIX, ("in", "out")
    if (node.op_type, index) in _PACKED_BIAS and rank == 1:
        return Read.BIAS, ("out",)
    return Read.OTHER, None


def _einsum(node: ir.Node, index: int, rank: int) -> tuple[Read, Axes | None]:
    """The weight of a product of two operands: an axis that vanishes is ``in``, one that stays in both, ``expert``."""
    equation = node.attributes.get("equation")
    if equation is None or equation.type != ir.AttributeType.STRING or len(node.inputs) != 2:
        return Read.OTHER, None
    operands, arrow, result = equation.as_string().replace(" ", "").partition("->")
    terms = operands.split(",")
    if not arrow or len(terms) != 2 or "." in operands or len(terms[index]) != rank:
        return Read.OTHER, None
    weight, other = terms[index], terms[1 - index]
    axes = tuple("in" if axis not in result else "expert" if axis in other else "out" for axis in weight)
    if sorted(axes) not in (["in", "out"], ["expert", "in", "out"]) or len(set(weight)) != rank:
        return Read.OTHER, None
    return Read.MATRIX, axes


def integer(node: ir.Node, name: str, default: int) -> int:
    """The integer attribute ``name`` of a node; ``default`` where it has none."""
    attribute = node.attributes.get(name)
    return int(attribute.as_int()) if attribute is not None and attribute.type == ir.AttributeType.INT else default


def _integers(node: ir.Node, name: str) -> tuple[int, ...] | None:
    attribute = node.attributes.get(name)
    is_list = attribute is not None and attribute.type == ir.AttributeType.INTS
    return tuple(int(item) for item in attribute.as_ints()) if is_list else None
