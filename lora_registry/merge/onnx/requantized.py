"""Quantized weights of an ONNX model, changed and quantized again in the form that they have.

The codes, scales and zero points of one weight are made at once, before anything is written, and held until they are;
so memory is that of the packed weights that change, and one of them unpacked. What comes out the same is not written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lora_registry.adapter import Kind, Target, Tensor
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.container import Entry
from lora_registry.merge.onnx.edits import Edit, Edits
from lora_registry.merge.plan import Part
from lora_registry.merge.receipt import TensorRecord
from lora_registry.onnx.model import OnnxModel, dtype_of, shape_of
from lora_registry.onnx.quantized.resolve import Held, values_of
from lora_registry.onnx.quantized.weight import GraphWeight, elements, weight_of
from lora_registry.onnx.refusal import RefusalError
from lora_registry.onnx.slots.seat import Seat
from lora_registry.ops.arrays import Array
from lora_registry.ops.change import merged
from lora_registry.ops.fidelity import Fidelity, measure


@dataclass(slots=True, eq=False)
class Encoded(Edit):
    """A stored tensor of a weight that was quantized again: its elements are known.

    Attributes:
        label: what is said of it where it cannot be written.
        made: the new elements, in the order and the type of the initializer.
        told: what the receipt says of the weight; beside one of its tensors only.
    """

    label: str = ""
    made: Array = field(default_factory=lambda: np.zeros(0))
    told: list[TensorRecord] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What is said of it."""
        return self.label

    def part(self, name: str, source: str, begin: int) -> Part:
        """Bytes: what the engine of merges knows of them is that they are whole."""
        del source
        content = ir.tensor(self.made).tobytes()
        value = Tensor("U8", (len(content),), content)
        target = Target(name=name, kind=Kind.FULL, layout=(), shape=value.shape, tensors={"value": value})
        return Part(name, Entry("U8", value.shape, begin, begin + len(content)), None, (target,))

    def make(self, before: Array | None) -> Array:
        """The new elements."""
        del before
        return self.made

    def records(self) -> list[TensorRecord]:
        """Those of the weight."""
        return self.told


def requantize(model: OnnxModel, edits: Edits, targets: Sequence[Held]) -> None:
    """Change a quantized weight, and quantize it again.

    Args:
        model: the graph.
        edits: get what has to be written.
        targets: all of one operator; no two concern one output.

    Raises:
        UnsupportedError: the weight is in a form that loreg does not read, or that a bias depends on in a way that it
            does not know.
        InvalidInputError: a value, or a scale, would not be finite.
    """
    held = targets[0].seat
    names = " and ".join(each.target.name for each in targets)
    try:
        weight = weight_of(model, held)
    except RefusalError as refusal:
        raise UnsupportedError(f"{names}: {refusal}") from None
    wanted = {each.target.name: merged(each.target, values_of(weight, each)).astype(np.float32) for each in targets}
    whole = weight.values(("out", "in")).copy()
    for each in targets:
        rows = wanted[each.target.name]
        whole[_outputs(each)] = rows if each.layout == ("out", "in") else rows.T
    try:
        changed = weight.changed(whole, ("out", "in"))
    except InvalidInputError as error:
        raise InvalidInputError(f"{names}: {error}") from None
    made = [*_encoded(model, edits, weight, changed, names), *_bias(model, edits, held.seat, weight, changed, names)]
    parts = tuple(str(each.value.name) for each in made)
    told = [_record(each, weight, changed, wanted[each.target.name], parts) for each in targets]
    if made:
        made[0].told = told
        edits.all += made
    else:
        edits.kept += told  # a change of nothing


def _outputs(held: Held) -> slice | Array:
    return slice(None) if held.window is None else held.window.indices()


def _record(held: Held, before: GraphWeight, after: GraphWeight, wanted: Array, parts: tuple[str, ...]) -> TensorRecord:
    return TensorRecord(
        name=held.target.name,
        target=held.target.name,
        kind=held.target.kind,
        dtype=before.form,
        fidelity=_fidelity(values_of(before, held), wanted, values_of(after, held)),
        evidence=held.evidence(),
        parts=parts,
    )


def _fidelity(before: Array, wanted: Array, after: Array) -> Fidelity:
    return measure(*(np.ascontiguousarray(each) for each in (before, wanted, after)))


def _encoded(model: OnnxModel, edits: Edits, before: GraphWeight, after: GraphWeight, label: str) -> Iterator[Encoded]:
    """An edit for every stored tensor that is another one afterwards."""
    for value, made in after.tensors().items():
        if not np.array_equal(np.asarray(made), np.asarray(elements(model, value))):
            node, index = before.stored.readers[value]
            yield _edit(edits, value, node, index, made, label)


def _edit(edits: Edits, value: ir.Value, node: ir.Node, index: int, made: Array, label: str) -> Encoded:
    """The edit of an initializer, or of a copy where another operator goes on reading the old one."""
    edit = Encoded(value, value.const_value, label=f"{label} ({value.name})", made=made)
    if len(list(value.uses())) > 1:
        graph, tensor = node.graph, value.const_value
        assert isinstance(graph, ir.Graph)
        assert tensor is not None
        edit.before = None
        edit.value = edits.patch.add(graph, f"{value.name}.changed", tensor.dtype, shape_of(value), lambda: made)
        node.replace_input_with(index, edit.value)
        edits.structural = True
    else:
        edits.patch.replace(value, lambda: made)
    return edit


def _bias(
    model: OnnxModel, edits: Edits, seat: Seat, before: GraphWeight, after: GraphWeight, label: str
) -> Iterator[Encoded]:
    """An INT32 bias has the scale of the activations times that of the weight, and follows it (``quantize_static``)."""
    node, old, new = seat.operator, before.codes.scales.values.reshape(-1), after.codes.scales.values.reshape(-1)
    bias = node.inputs[2] if node.op_type == "Gemm" and len(node.inputs) > 2 else None
    producer = bias.producer() if bias is not None else None
    if producer is None or producer.op_type != "DequantizeLinear" or np.array_equal(old, new):
        return
    codes, scales = producer.inputs[0], producer.inputs[1]
    if codes is None or scales is None or not codes.is_initializer() or dtype_of(codes) != "I32":
        return
    held = elements(model, scales)
    if held.size != new.size or not old.all():
        raise UnsupportedError(f"{label}: the scales of the bias {codes.name!r} do not follow those of the weight")
    ratio = (new.astype(np.float64) / old).reshape(held.shape)
    fresh = (held.astype(np.float64) * ratio).astype(held.dtype)
    whole = np.rint(elements(model, codes).astype(np.float64) * (held.astype(np.float64) / fresh))
    limits = np.iinfo(np.int32)
    yield _edit(edits, codes, producer, 0, np.clip(whole, limits.min, limits.max).astype(np.int32), label)
    yield _edit(edits, scales, producer, 1, fresh, label)
