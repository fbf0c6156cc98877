"""Where in a graph the branch of a slot goes: what it reads, and to which value it is added.

The branch is added behind whatever a runtime fuses with the operator: a constant that is added (MatMul and Add
become one Gemm), and the pair that quantizes the output and back (one QLinearMatMul). Put in between, it would
change the last bits of the base; behind, with nothing active, it does not (W-002).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from lora_registry.adapter import Kind
from lora_registry.onnx.model import shape_of
from lora_registry.onnx.refusal import OPAQUE, RefusalError
from lora_registry.onnx.resolution import Carrier
from lora_registry.onnx.sites import Read, Site
from lora_registry.onnx.window import Window

STANDARD = ("", "ai.onnx")
_PASSES_ON = frozenset({"Identity", "Reshape"})
_FUSED_PAIRS = {"QuantizeLinear": "DequantizeLinear"}


@dataclass(frozen=True, slots=True)
class Seat:
    """One operator beside which a branch runs.

    Attributes:
        operator: computes with the base tensor.
        reader: node one of whose inputs the branch reads too; ``operator``, or what quantizes its input.
        index: which input of ``reader``: activations of a matrix or kernel, indices of rows.
        outlet: the value to which the branch is added.
        columns: for a tensor that is a part of the operator's matrix: for each output of the operator, the output of
            the tensor that is added to it, or the number of those, where none is; None where they are the same.
    """

    operator: ir.Node
    reader: ir.Node
    index: int
    outlet: ir.Value
    columns: tuple[int, ...] | None = None

    @property
    def source(self) -> ir.Value:
        """What the branch reads: looked up when it is built, since another branch may have replaced it."""
        value = self.reader.inputs[self.index]
        assert value is not None
        return value

    @property
    def name(self) -> str:
        """Name of the operator, as shown to people."""
        return str(self.operator.name or self.operator.op_type)


def seats_of(carrier: Carrier, kind: Kind) -> Iterator[Seat]:
    """The seats beside the operators that read the target's tensor in ``carrier``.

    Raises:
        RefusalError: the operator does more with its input than a branch of two factors can follow.
    """
    for site in carrier.sites:
        seat = _seat_of(site, kind)
        yield seat if carrier.window is None else replace(seat, columns=_columns(carrier, carrier.window, site, kind))


def _columns(carrier: Carrier, window: Window, site: Site, kind: Kind) -> tuple[int, ...]:
    if kind is not Kind.LINEAR or site.axes is None or site.axes[window.axis] != "out":
        raise RefusalError(OPAQUE, f"{site.operator} ({site.node}) reads a part of it that is not outputs of a matrix")
    columns = np.full(shape_of(carrier.value)[window.axis], window.length)
    columns[window.indices()] = np.arange(window.length)
    return tuple(columns.tolist())


def _seat_of(site: Site, kind: Kind) -> Seat:
    if not site.path:
        raise RefusalError(OPAQUE, "the initializer is itself an output of the graph")
    node, index = site.path[-1]
    if kind is Kind.EMBEDDING:
        return Seat(node, node, 1, outlet_of(node.outputs[0]))
    if kind is Kind.CONV:
        if _number(node, "group", 1) != 1:
            raise RefusalError(OPAQUE, f"{_said(node)} has groups")
        return Seat(node, node, 0, outlet_of(node.outputs[0]))
    if node.op_type == "Einsum":
        _check_einsum(node, index)
    elif index != 1:
        raise RefusalError(OPAQUE, f"{_said(node)} has the matrix on its left")
    scaled = [name for name in ("transA", "transBatchA", "transBatchB") if _number(node, name, 0)]
    scaled += ["alpha"] if _number(node, "alpha", 1.0) != 1 else []
    if scaled:
        raise RefusalError(OPAQUE, f"{_said(node)} has {scaled[0]}")
    if site.read is Read.MATRIX and site.axes is not None and "expert" in site.axes:
        raise RefusalError(OPAQUE, f"{_said(node)} reads stacked experts")
    source = 1 - index if node.op_type == "Einsum" else 0
    return Seat(node, node, source, outlet_of(node.outputs[0], biased=not _is_stack(node.inputs[source])))


def outlet_of(value: ir.Value, *, biased: bool = True) -> ir.Value:
    """The value behind what a runtime may fuse with the operator that makes ``value``.

    Args:
        value: output of the operator.
        biased: whether a constant that is added is fused with the operator, and not with what comes after it.
    """
    while (node := _only_reader(value)) is not None:
        if biased and node.domain in STANDARD and node.op_type == "Add" and _adds_constant(node, value):
            value = node.outputs[0]
        elif (back := _requantized(node)) is not None:
            value, biased = back, True
        else:
            break
    return value


def _is_stack(value: ir.Value | None) -> bool:
    """Whether a value is known to have more than two axes: its MatMul becomes no Gemm."""
    return value is not None and value.shape is not None and len(value.shape) > 2


def _requantized(node: ir.Node) -> ir.Value | None:
    """What DequantizeLinear makes of what ``node``, a QuantizeLinear, makes; None where it is no such pair."""
    wanted = _FUSED_PAIRS.get(node.op_type)
    back = _only_reader(node.outputs[0]) if wanted is not None else None
    return back.outputs[0] if back is not None and back.op_type == wanted else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def _adds_constant(node: ir.Node, value: ir.Value) -> bool:
    return any(other is not value and other is not None and is_constant(other) for other in node.inputs)


def is_constant(value: ir.Value) -> bool:
    """Whether a value is an initializer, also behind DequantizeLinear or a view."""
    while (node := value.producer()) is not None:
        if node.op_type == "Constant":
            return True
        inputs = [each for each in node.inputs if each is not None]
        if node.op_type not in _PASSES_ON | {"DequantizeLinear"} or not inputs:
            return False
        value = inputs[0]
    return value.is_initializer() and not value.is_graph_input()


def is_computed_at_load(value: ir.Value) -> bool:
    """Whether a value depends on no input of the graph, so that a runtime computes it once, when it opens the model."""
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if each in seen or each.is_initializer():
            continue
        seen.add(each)
        node = each.producer()
        if node is None or node.graph is None or any(_has_body(attribute) for attribute in node.attributes.values()):
            return False
        waiting += [before for before in node.inputs if before is not None]
    return True


def _has_body(attribute: ir.Attr) -> bool:
    return attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _check_einsum(node: ir.Node, index: int) -> None:
    """Only x·W with the sum over x's last axis is what MatMul does."""
    terms, _, result = node.attributes["equation"].as_string().replace(" ", "").partition("->")
    weight, other = terms.split(",")[index], terms.split(",")[1 - index]
    within = next((axis for axis in weight if axis not in result), "")
    outputs = "".join(axis for axis in weight if axis in result)
    if len(outputs) != 1 or not other.endswith(within) or result != other[:-1] + outputs:
        raise RefusalError(OPAQUE, f"{_said(node)} computes {terms}->{result}")


def _said(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"


def _number(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return default if attribute is None or attribute.is_ref() else float(attribute.value)


def users_of(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """A snapshot of who reads ``value``: taken before nodes are added, which read it too."""
    yield from [(usage.node, usage.idx) for usage in value.uses()]
