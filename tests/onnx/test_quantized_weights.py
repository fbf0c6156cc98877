"""Quantized weights of ONNX models: read as ONNX Runtime computes with them, written back, and found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import quantized_graphs
from onnx import helper
from quantized_graphs import FORMS, HEIGHT, NAME, WIDTH, inputs, weights

from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.names import Names
from lora_registry.onnx.quantized.weight import GraphWeight, elements, weight_of
from lora_registry.onnx.refusal import RefusalError
from lora_registry.onnx.slots.quantized_seats import quantized_seats

NO_ACTIVATIONS = [form for form in FORMS if not form.startswith(("dynamic", "qdq-tensor", "qdq-ch", "qdq-u", "qdq-g"))]
"""Forms whose activations are not quantized, so that the product itself tells what the weight is."""


def only(path: Path) -> tuple[OnnxModel, GraphWeight]:
    model = OnnxModel.open(path)
    (seat,) = quantized_seats(model, Names(model))
    assert NAME in seat.names
    return model, weight_of(model, seat)


@pytest.mark.parametrize("form", NO_ACTIVATIONS)
def test_the_values_are_those_that_onnx_runtime_multiplies_by(form: str, tmp_path: Path) -> None:
    """x·W_q, with W_q computed here."""
    path = FORMS[form](tmp_path / "q.onnx")
    _, weight = only(path)
    wanted = inputs() @ weight.values(("in", "out"))
    assert np.abs(quantized_graphs.run(path, inputs()) - wanted).max() < 1e-5


@pytest.mark.parametrize("form", [form for form in FORMS if form != "nbits-float-zeros"])
def test_the_values_are_the_matrix_within_a_step(form: str, tmp_path: Path) -> None:
    """Activations that are quantized too hide what the weight is; the matrix it was made of does not."""
    _, weight = only(FORMS[form](tmp_path / "q.onnx"))
    off, steps = np.abs(weight.values(("in", "out")) - weights()), weight.codes.steps
    steps = steps if weight.axes == ("in", "out") else steps.T
    assert (off <= steps * 1.01).all()
    assert np.mean(off <= steps * 0.502) > 0.95


@pytest.mark.parametrize("form", FORMS)
def test_what_is_not_changed_is_written_as_it_was(form: str, tmp_path: Path) -> None:
    """Codes, scales and zero points: read, encoded again, and packed again."""
    model, weight = only(FORMS[form](tmp_path / "q.onnx"))
    again = weight.changed(weight.values(("out", "in")), ("out", "in"))
    for value, made in again.tensors().items():
        assert np.array_equal(np.asarray(made), np.asarray(elements(model, value))), value.name


def test_a_block_that_is_not_changed_keeps_its_codes(tmp_path: Path) -> None:
    """Of 4 bits: the first block of the first output gets other values, and nothing else does."""
    model, weight = only(FORMS["nbits-4"](tmp_path / "q.onnx"))
    wanted = weight.values(("out", "in")).copy()
    wanted[0, :16] = np.linspace(-1, 2, 16)
    tensors = {str(value.name): made for value, made in weight.changed(wanted, ("out", "in")).tensors().items()}
    for name, made in tensors.items():
        before = model.array(name)
        assert not np.array_equal(
            made.reshape(HEIGHT, WIDTH // 16, -1)[0, 0], before.reshape(HEIGHT, WIDTH // 16, -1)[0, 0]
        )
        assert np.array_equal(made.reshape(-1, made.size // HEIGHT)[1:], before.reshape(-1, made.size // HEIGHT)[1:])


@pytest.mark.parametrize("form", ["nbits-4", "nbits-4-zeros", "nbits-8", "nbits-8-zeros", "qdq-4", "qdq-4-zeros"])
def test_another_matrix_is_quantized_as_onnx_runtime_does(form: str, tmp_path: Path) -> None:
    """Where every block changes by much, codes and scales are nearly all those of the quantizer itself."""
    _, weight = only(FORMS[form](tmp_path / "q.onnx"))
    other = weights() * 7
    made = weight.changed(np.ascontiguousarray(other.T), ("out", "in"))
    fresh = np.abs(made.values(("in", "out")) - other).max()
    own = np.abs(weight.values(("in", "out")) - weights()).max() * 7
    assert fresh <= own * 1.001


def test_a_width_that_ends_within_a_block_is_read_and_written(tmp_path: Path) -> None:
    """What fills up the last block stays as it is."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 256, (4, 2, 8), dtype=np.uint8)
    node = helper.make_node(
        "MatMulNBits", ["x", "w_Q4", "w_scales"], ["y"], domain="com.microsoft", K=24, N=4, bits=4, block_size=16
    )
    scales = np.full((4, 2), 0.1, np.float32)
    path = quantized_graphs.model([node], {"w_Q4": codes, "w_scales": scales}, tmp_path / "q.onnx")
    model = OnnxModel.open(path)
    (seat,) = quantized_seats(model, Names(model))
    weight = weight_of(model, seat)
    assert weight.values(("out", "in")).shape == (4, 24)
    changed = weight.changed(weight.values(("out", "in")) * -1, ("out", "in")).tensors()
    (made,) = (array for value, array in changed.items() if value.name == "w_Q4")
    assert np.array_equal(made[:, 1, 4:], codes[:, 1, 4:])
    assert not np.array_equal(made[:, 1, :4], codes[:, 1, :4])


@pytest.mark.parametrize(("attribute", "said"), [("g_idx", "order of inputs"), ("bits", "codes of 3 bits")])
def test_forms_that_are_not_read_are_refused_by_name(attribute: str, said: str, tmp_path: Path) -> None:
    """An order of inputs, and widths that fill no bytes."""
    path = FORMS["nbits-4-zeros"](tmp_path / "q.onnx")
    proto = onnx.load(path)
    (node,) = proto.graph.node
    if attribute == "g_idx":
        node.input.append("order")
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(WIDTH, np.int32), "order"))
    else:
        next(each for each in node.attribute if each.name == "bits").i = 3
    onnx.save(proto, path)
    with pytest.raises(RefusalError, match=said):
        only(path)
