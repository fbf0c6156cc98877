"""The branch of a slot: y = operator(x) becomes y − (x·A·(−s))·B, in standard operators alone.

A difference, because y − (+0) is y for every y, and y + (+0) is not for −0. With A (in, 0) and B (0, out), as the
empty initializers are, the product of the two is +0 in every element, so that the base comes out bit for bit.
ONNX Runtime computes products over an axis of length 0 since 1.20 (microsoft/onnxruntime#21525, #22111).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lora_registry.adapter import Kind
from lora_registry.dtypes import DTYPES
from lora_registry.errors import ConflictError
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.refusal import OPAQUE, RefusalError
from lora_registry.onnx.slots.manifest import IDS, SCALE, Role, Slot
from lora_registry.onnx.slots.seat import Seat, users_of
from lora_registry.ops.arrays import Array, numpy_dtype

_CONV_ATTRIBUTES = ("auto_pad", "dilations", "kernel_shape", "pads", "strides")
_OWN = "loreg"  # first part of the names of all nodes and values that are added


@dataclass(slots=True)
class Nodes:
    """Nodes that are being added one after the other, each with one output."""

    prefix: str
    made: list[ir.Node] = field(default_factory=list)

    def add(
        self,
        operator: str,
        inputs: Sequence[ir.Value | None],
        dtype: ir.DataType | None = None,
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:
        """Append a node; returns its output, of type ``dtype``, or that of the first input."""
        name = f"{self.prefix}/{operator}_{len(self.made)}"
        node = ir.Node("", operator, inputs, list(attributes), name=name)
        output: ir.Value = node.outputs[0]
        output.name = f"{name}/output"
        first = inputs[0]
        output.type = ir.TensorType(dtype) if dtype is not None else first.type if first is not None else None
        self.made.append(node)
        return output


class Branches:
    """Adds inputs and branches to one graph.

    Args:
        model: the graph, which is edited at once.
        batched: whether each row of a batch has an adapter of its own.

    Raises:
        ConflictError: the graph has a value that is called as one that is to be added.
    """

    def __init__(self, model: OnnxModel, *, batched: bool) -> None:
        self._graph = model.ir.graph
        self._batched = batched
        self._taken = _value_names(model.ir)
        self._switches: dict[str, ir.Value] = {}
        self._count = 0
        self._batch = _batch_axis(self._graph)

    def add(self, slot: Slot, seats: Sequence[Seat]) -> None:
        """Add the two inputs of ``slot``, and a branch at each seat.

        Raises:
            RefusalError: the model is batched, and nothing proves that a seat computes row by row.
        """
        factors = self._factor(slot, "A"), self._factor(slot, "B")
        for seat in seats:
            nodes = Nodes(f"{_OWN}/{slot.target}/{self._count}")
            self._count += 1
            build = self._batched_branch if self._batched else self._branch
            self._subtract(nodes, seat, build(nodes, slot, seat, *factors))

    # -- inputs ---------------------------------------------------------------------------------------------

    def _factor(self, slot: Slot, role: Role) -> ir.Value:
        empty, shown = list(slot.factor_shape(role, 0)), list[int | str](slot.factor_shape(role, 0))
        # Axes of one name have one length, and a runtime uses that to share buffers: each slot has its own rank.
        shown[slot.rank_axis(role)] = f"{slot.target}/rank"
        if self._batched:
            empty, shown = [1, *empty], ["adapters", *shown]
        return self._input(slot.input(role), np.zeros(empty, numpy_dtype(slot.dtype)), shown)

    def _input(self, name: str, default: Array, shape: Sequence[int | str]) -> ir.Value:
        """An input that has a value by itself: a graph input and an initializer of the same name (IR 4)."""
        if name in self._taken:
            raise ConflictError(f"the graph has a value {name!r} already; is it switchable?")
        self._taken.add(name)
        tensor = ir.tensor(default, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(shape), const_value=tensor)
        self._graph.inputs.append(value)
        self._graph.register_initializer(value)
        return value

    def _constant(self, name: str, array: Array) -> ir.Value:
        name = f"{_OWN}/{name}"
        if name not in self._switches:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            self._graph.register_initializer(value)
            self._switches[name] = value
        return self._switches[name]

    def _first(self, nodes: Nodes) -> None:
        self._graph.insert_before(self._graph[0], nodes.made)

    def _minus_scale(self, dtype: str) -> ir.Value:
        """−s in the element type of a slot; computed once a run, before everything else."""
        if dtype not in self._switches:
            scale = self._switches.get(SCALE)
            if scale is None:
                scale = self._input(SCALE, np.ones((), np.float32), [])
                self._switches[SCALE] = scale
            nodes = Nodes(f"{_OWN}/minus_scale/{dtype}")
            value = nodes.add("Neg", [scale])
            if dtype != "F32":
                wanted = ir.DataType(DTYPES[dtype].onnx)
                value = nodes.add("Cast", [value], wanted, [ir.AttrInt64("to", int(wanted))])
            self._first(nodes)
            self._switches[dtype] = value
        return self._switches[dtype]

    def _ids(self) -> ir.Value:
        """The adapter of each row, (batch,): one number stands for all rows."""
        if IDS not in self._switches:
            if self._batch is None:
                raise RefusalError(OPAQUE, "the first input of the graph has no free batch axis")
            rows, _ = self._batch
            ids = self._input(IDS, np.zeros((1,), np.int64), ["rows"])
            nodes = Nodes(f"{_OWN}/adapter_of_row")
            first = self._constant("first", np.zeros((1,), np.int64))
            shape = nodes.add("Shape", [rows], ir.DataType.INT64)
            length = nodes.add("Gather", [shape, first])
            # Gather counts a negative number from the end: the last adapter, where the caller perhaps means none.
            beyond = self._constant("no_adapter", np.full((1,), np.iinfo(np.int64).max, np.int64))
            is_negative = nodes.add("Less", [ids, first], ir.DataType.BOOL)
            checked = nodes.add("Where", [is_negative, beyond, ids], ir.DataType.INT64)
            self._switches[IDS] = nodes.add("Expand", [checked, length])
            self._first(nodes)
        return self._switches[IDS]

    # -- branches -------------------------------------------------------------------------------------------

    def _branch(self, nodes: Nodes, slot: Slot, seat: Seat, A: ir.Value, B: ir.Value) -> ir.Value:
        x, B = seat.source, self._spread(nodes, seat, B, axes=2)
        if slot.kind is Kind.EMBEDDING:
            inner = nodes.add("Gather", [A, x])
        elif slot.kind is Kind.CONV:
            kept = [seat.operator.attributes[name] for name in _CONV_ATTRIBUTES if name in seat.operator.attributes]
            inner = nodes.add("Conv", [x, A], A.dtype, kept)
        else:
            inner = nodes.add("MatMul", [x, A], A.dtype)
        inner = nodes.add("Mul", [inner, self._minus_scale(slot.dtype)])
        return nodes.add("Conv" if slot.kind is Kind.CONV else "MatMul", [inner, B])

    def _spread(self, nodes: Nodes, seat: Seat, B: ir.Value, *, axes: int) -> ir.Value:
        """B with the outputs of the whole operator, zeros where they are none of the tensor's."""
        if seat.columns is None:
            return B
        pads = np.zeros(2 * axes, np.int64)
        pads[-1] = 1
        wide = nodes.add("Pad", [B, self._constant(f"one_column_of_{axes}", pads)])
        place = self._constant(f"{seat.name}/{B.name}/columns", np.array(seat.columns, np.int64))
        return nodes.add("Gather", [wide, place], attributes=[ir.AttrInt64("axis", -1)])

    def _batched_branch(self, nodes: Nodes, slot: Slot, seat: Seat, A: ir.Value, B: ir.Value) -> ir.Value:
        """Each row's own A and B, gathered from the stacks (n, in, r) and (n, r, out)."""
        if slot.kind is Kind.CONV:
            raise RefusalError(OPAQUE, f"{seat.name}: a batched model has no slots for convolutions")
        x, ids = self._rows(seat), self._ids()
        own = nodes.add("Gather", [self._spread(nodes, seat, B, axes=3), ids])
        if slot.kind is Kind.EMBEDDING:
            inner = self._batched_rows(nodes, seat, x, A, ids)
        else:
            if len(x.shape) != 3:
                x = nodes.add("Reshape", [x, self._constant("by_row", np.array([0, -1, slot.width], np.int64))])
            inner = nodes.add("MatMul", [x, nodes.add("Gather", [A, ids])], A.dtype)
        branch = nodes.add("MatMul", [nodes.add("Neg", [inner]), own])
        if slot.kind is Kind.EMBEDDING or (len(seat.source.shape or ()) == 3 and x is seat.source):
            return branch
        return nodes.add("Reshape", [branch, nodes.add("Shape", [seat.outlet], ir.DataType.INT64)])

    def _batched_rows(self, nodes: Nodes, seat: Seat, tokens: ir.Value, A: ir.Value, ids: ir.Value) -> ir.Value:
        """Row ``tokens[b, s]`` of the A of row b, (batch, sequence, r)."""
        if len(tokens.shape) != 2:
            raise RefusalError(OPAQUE, f"{seat.name} reads indices that are not (batch, sequence)")
        if tokens.dtype != ir.DataType.INT64:
            tokens = nodes.add("Cast", [tokens], ir.DataType.INT64, [ir.AttrInt64("to", int(ir.DataType.INT64))])
        column = nodes.add("Unsqueeze", [ids, self._constant("axis_1", np.array([1], np.int64))])
        beside = nodes.add("Expand", [column, nodes.add("Shape", [tokens], ir.DataType.INT64)])
        last = self._constant("axis_last", np.array([-1], np.int64))
        pair = [nodes.add("Unsqueeze", [each, last], ir.DataType.INT64) for each in (beside, tokens)]
        index = nodes.add("Concat", pair, attributes=[ir.AttrInt64("axis", -1)])
        return nodes.add("GatherND", [A, index])

    def _rows(self, seat: Seat) -> ir.Value:
        """What a seat reads, with the batch as its first axis; before a reshape that flattened it, if need be.

        Raises:
            RefusalError: the shapes in the graph do not prove it.
        """
        value, batch = seat.source, self._batch[1] if self._batch is not None else None
        width = value.shape[-1] if value.shape is not None and len(value.shape) else None
        while True:
            shape = value.shape
            if batch is not None and shape is not None and len(shape) > 1 and _symbol(shape[0]) == batch:
                return value
            node = value.producer()
            if node is None or node.op_type != "Reshape":
                raise RefusalError(OPAQUE, f"nothing proves that {seat.name} computes row by row of the batch")
            before: ir.Value = node.inputs[0]
            if before.shape is None or not len(before.shape) or before.shape[-1] != width:
                raise RefusalError(OPAQUE, f"nothing proves that {seat.name} computes row by row of the batch")
            value = before

    def _subtract(self, nodes: Nodes, seat: Seat, branch: ir.Value) -> None:
        splice(nodes, seat.outlet, lambda old: nodes.add("Sub", [old, branch]))


def splice(nodes: Nodes, old: ir.Value, combine: Callable[[ir.Value], ir.Value]) -> None:
    """Put nodes between a value and everybody who reads it.

    Args:
        nodes: added to the graph; those that read ``old`` go on reading it.
        old: the value.
        combine: makes what the others read from then on, by adding to ``nodes``.
    """
    readers = list(users_of(old))  # before the nodes that read it too
    own = set(nodes.made)
    new = combine(old)
    new.type, new.shape = old.type, old.shape
    maker = old.producer()
    assert maker is not None
    graph = maker.graph
    assert graph is not None
    graph.insert_after(maker, nodes.made)
    for node, index in readers:
        if node not in own:
            node.replace_input_with(index, new)
    if old.is_graph_output():
        name = str(old.name)
        for place, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[place] = new
        old.name, new.name = f"{name}/base", name


def _batch_axis(graph: ir.Graph) -> tuple[ir.Value, str] | None:
    """The first input of the graph, and the symbol of its first axis; None where that axis is fixed."""
    for value in graph.inputs:
        if value.is_initializer():
            continue
        symbol = _symbol(value.shape[0]) if value.shape is not None and len(value.shape) else None
        return None if symbol is None else (value, symbol)
    return None


def _symbol(length: object) -> str | None:
    return length.value if isinstance(length, ir.SymbolicDim) else None


def _value_names(model: ir.Model) -> set[str]:
    """Names of all values, in subgraphs too."""
    names: set[str] = set()
    for graph in model.graphs():
        names.update(map(str, graph.initializers))
        names.update(str(value.name) for value in graph.inputs)
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        names.update(str(value.name) for value in node.outputs)
    return names
