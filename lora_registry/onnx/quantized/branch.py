"""A change kept beside a quantized operator: y = operator(x) becomes y + x·A·B, with A and B as constants.

What comes out stands for W_q + s·B·A, W_q being what the codes stand for: nothing of the change is rounded away. With
magnitudes (DoRA, Liu et al. 2024) each output is multiplied by g = m / ‖W_q + s·B·A‖, which is known when the branch is
made. Where the outlet of the operator has a bias b already, (1 - g)·b is added last, since no bias is scaled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from lora_registry.adapter import Kind
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.onnx.model import OnnxModel, dtype_of
from lora_registry.onnx.patch import Patch
from lora_registry.onnx.quantized.resolve import Held
from lora_registry.onnx.sites import integer
from lora_registry.onnx.slots.branch import Nodes, splice
from lora_registry.onnx.slots.seat import users_of
from lora_registry.ops.arrays import Array, numpy_dtype, round_to, to_array
from lora_registry.ops.change import delta

PLAIN, SCALED = "loreg/kept/", "loreg/scaled/"
"""First part of the names of branches, without and with magnitudes."""

_KEPT = frozenset({Kind.LINEAR, Kind.EMBEDDING})
_OWN_BIAS = {"Gemm": 2, "MatMulNBits": 5, "DynamicQuantizeMatMul": 4}

Values = Callable[[Held], Array]
"""The tensor of a target as it is held: float32, of the target's layout."""


def check_branch(held: Held) -> None:
    """Refuse a target whose change cannot run beside a quantized operator.

    Raises:
        UnsupportedError: it has no two factors, or replaces values; or the operator does more than a product.
    """
    target, node = held.target, held.seat.seat.operator
    if target.kind not in _KEPT:
        raise UnsupportedError(
            f"{target.name}: the base holds it quantized ({held.seat.holder.op_type}), and a {target.kind} target has "
            "no two factors that could run beside it; merge with --requantize, or into a float model"
        )
    if "value" in target.tensors:
        raise UnsupportedError(
            f"{target.name}: the base holds it quantized ({held.seat.holder.op_type}), and the target brings a value "
            "in its place; merge with --requantize, or into a float model"
        )
    alpha = node.attributes.get("alpha")
    if integer(node, "transA", 0) or (alpha is not None and alpha.as_float() != 1):
        raise UnsupportedError(
            f"{target.name}: {node.op_type} {node.name!r} has transA or alpha, beside which no branch runs"
        )


def check_earlier(held: Held) -> None:
    """Refuse what would change the norms of a branch that an earlier merge left, or be changed by them.

    Raises:
        UnsupportedError: one of the two has magnitudes.
    """
    names = [str(node.name) for node, _ in users_of(held.seat.seat.outlet)]
    scaled = any(name.startswith(SCALED) for name in names)
    kept = scaled or any(name.startswith(PLAIN) for name in names)
    if scaled or (kept and "magnitude" in held.target.tensors):
        raise UnsupportedError(
            f"{held.target.name}: an earlier merge keeps a change beside {held.seat.seat.name}, and magnitudes depend "
            "on the whole weight; merge both adapters as one (loreg combine)"
        )


def keep_beside(model: OnnxModel, patch: Patch, targets: Sequence[Held], values: Values) -> tuple[str, ...]:
    """Add one branch for all ``targets``, which one operator holds.

    Args:
        model: the graph, which is edited at once.
        patch: its edits.
        targets: all of one operator.
        values: what it holds; read only for targets with magnitudes.

    Returns:
        Names of the constants that were added.

    Raises:
        InvalidInputError: a factor does not fit into the element type of the activations, or a norm is zero.
        UnsupportedError: magnitudes beside a bias that is not constant.
    """
    seat = targets[0].seat.seat
    scaled = any("magnitude" in held.target.tensors for held in targets)
    nodes = Nodes(patch.free(f"{SCALED if scaled else PLAIN}{targets[0].target.name}"))
    constants = _Constants(seat.operator.graph, patch, nodes.prefix, targets[0].seat.dtype)
    A, B = _factors(targets)
    a, b = constants.add("A", A), constants.add("B", B)
    rows = targets[0].target.kind is Kind.EMBEDDING
    inner = nodes.add("Gather", [a, seat.source]) if rows else nodes.add("MatMul", [seat.source, a], a.dtype)
    branch = nodes.add("MatMul", [inner, b], a.dtype)
    steps: list[tuple[str, ir.Value]] = [("Add", branch)]
    if scaled:
        gain, bias = _gain(targets, values), _bias(model, targets[0])
        steps += [("Mul", constants.add("gain", gain))]
        steps += [("Add", constants.add("bias", (1 - gain) * bias))] if bias is not None else []

    def combined(value: ir.Value) -> ir.Value:
        for operator, other in steps:
            value = nodes.add(operator, [value, other])
        nodes.made[-1].name = nodes.prefix  # so that no later merge takes it
        return value

    splice(nodes, seat.outlet, combined)
    return constants.names


class _Constants:
    """Constants of one branch, in the element type of the activations."""

    def __init__(self, graph: ir.Graph | ir.Function | None, patch: Patch, prefix: str, dtype: str) -> None:
        assert isinstance(graph, ir.Graph)
        self._graph, self._patch, self._prefix, self._dtype = graph, patch, prefix, dtype
        self.names: tuple[str, ...] = ()

    def add(self, name: str, array: Array) -> ir.Value:
        """A constant with the elements ``array``, float64, rounded once."""
        made = round_to(np.ascontiguousarray(array), self._dtype)
        if not np.isfinite(made.astype(np.float64)).all():
            raise InvalidInputError(f"{self._prefix}: {name} does not fit into {self._dtype}")
        dtype = ir.DataType.from_numpy(numpy_dtype(self._dtype))
        value = self._patch.add(self._graph, f"{self._prefix}/{name}", dtype, made.shape, lambda: made)
        self.names += (str(value.name),)
        return value


def _factors(targets: Sequence[Held]) -> tuple[Array, Array]:
    """A (in, ranks) and s·B (ranks, outputs of the operator), float64: those of the targets beside each other."""
    seat = targets[0].seat
    left, right = [], []
    for held in targets:
        a, b = (to_array(held.target.tensors[role]).astype(np.float64) for role in ("A", "B"))
        wide = np.zeros((len(a), seat.height))
        wide[:, _outputs(held)] = b.T * held.target.scale
        left.append(a.T)
        right.append(wide)
    return np.concatenate(left, 1), np.concatenate(right)


def _outputs(held: Held) -> slice | Array:
    return slice(None) if held.window is None else held.window.indices()


def _gain(targets: Sequence[Held], values: Values) -> Array:
    """The gain of each output of the operator, float64; 1 where no target has magnitudes."""
    gain = np.ones(targets[0].seat.height)
    for held in targets:
        target = held.target
        if "magnitude" not in target.tensors:
            continue
        whole = values(held).astype(np.float64) + delta(target)
        norms = np.linalg.norm(whole, axis=held.layout.index("in"))
        if not norms.all():
            raise InvalidInputError(f"{target.name}: an output of the changed weight is zero, and cannot be scaled")
        gain[_outputs(held)] = to_array(target.tensors["magnitude"]).astype(np.float64).reshape(-1) / norms
    return gain


def _bias(model: OnnxModel, held: Held) -> Array | None:
    """What is added to the product before the outlet, float64; None where nothing is."""
    seat, total = held.seat.seat, None
    node = seat.operator
    index = _OWN_BIAS.get(node.op_type)
    own = node.inputs[index] if index is not None and index < len(node.inputs) else None
    added = [own] if own is not None else []
    value = node.outputs[0]
    while value is not seat.outlet:
        node = next(iter(value.uses())).node
        if node.op_type == "Add":
            added += [other for other in node.inputs if other is not None and other is not value]
        value = node.outputs[0]
    beta = seat.operator.attributes.get("beta")
    if added and beta is not None and beta.as_float() != 1:
        raise UnsupportedError(f"{held.target.name}: {seat.name} has beta, beside which magnitudes are not computed")
    for each in added:
        known = _constant(model, each)
        if known is None:
            raise UnsupportedError(
                f"{held.target.name}: the bias {each.name!r} beside {seat.name} is not a plain constant, and "
                "magnitudes do not scale it; merge with --requantize, or into a float model"
            )
        total = known if total is None else total + known
    return total


def _constant(model: OnnxModel, value: ir.Value) -> Array | None:
    """Elements of an initializer, of one behind DequantizeLinear too; None of anything else."""
    if value.is_initializer() and not value.is_graph_input() and dtype_of(value) != "UNDEFINED":
        return model.elements(value).astype(np.float64)
    node = value.producer()
    if node is None or node.op_type != "DequantizeLinear":
        return None
    held = [_constant(model, each) for each in node.inputs if each is not None]
    codes, scales, *zeros = (each for each in held if each is not None)
    result: Array = (codes - (zeros[0] if zeros else 0)) * scales  # a bias has one axis
    return result
