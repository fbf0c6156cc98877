"""Slots beside quantized operators: the base's bits while none is filled, and x·A·B beside them while one is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import pytest
import switchable_models as switchable
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import InvalidInputError
from lora_registry.onnx.slots.factors import factors_for
from lora_registry.onnx.slots.insert import add_slots

IN, OUT, ROWS = 32, 16, 20
RANDOM = np.random.default_rng(0)
TARGETS = (
    switchable.low_rank("table.weight", Kind.EMBEDDING, ("in", "out"), (ROWS, IN), scale=0.1),
    switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (IN, OUT), rank=5, scale=0.1),
)


@pytest.fixture
def floating(tmp_path: Path) -> Path:
    """ids (batch, sequence) → Gather → MatMul → Add → y."""
    nodes = [
        helper.make_node("Gather", ["table.weight", "ids"], ["e"], name="/table/Gather"),
        helper.make_node("MatMul", ["e", "layer.weight"], ["z"], name="/layer/MatMul"),
        helper.make_node("Add", ["z", "layer.bias"], ["y"], name="/layer/Add"),
    ]
    weights = {
        "table.weight": RANDOM.standard_normal((ROWS, IN)).astype(np.float32),
        "layer.weight": RANDOM.standard_normal((IN, OUT)).astype(np.float32),
        "layer.bias": RANDOM.standard_normal(OUT).astype(np.float32),
    }
    ids = ("batch", "sequence")
    proto = onnx_models.graph(nodes, weights, inputs={"ids": ids}, output_shape=(*ids, OUT))
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    path = tmp_path / "float.onnx"
    onnx.save(proto, path)
    return path


class Calibration(CalibrationDataReader):
    """Three batches of ids."""

    def __init__(self) -> None:
        self._batches = iter({"ids": RANDOM.integers(0, ROWS, size=(2, 5))} for _ in range(3))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def nbits(source: Path, out: Path, form: QuantFormat) -> None:
    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=16, is_symmetric=True, quant_format=form)
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))


def static(source: Path, out: Path) -> None:
    quantize_static(str(source), str(out), Calibration(), quant_format=QuantFormat.QDQ, per_channel=True)


SCHEMES: dict[str, tuple[Callable[[Path, Path], None], int]] = {
    "MatMulNBits": (lambda source, out: nbits(source, out, QuantFormat.QOperator), 2),
    "QDQ int4": (lambda source, out: nbits(source, out, QuantFormat.QDQ), 2),
    "dynamic": (lambda source, out: quantize_dynamic(str(source), str(out), op_types_to_quantize=["MatMul"]), 2),
    "QDQ static": (static, 2),
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bits_of_the_base_and_the_change_beside_it(floating: Path, tmp_path: Path, scheme: str) -> None:
    """W-002 for every scheme; with adapters on, what is added is the change, unrounded by the base's grid."""
    quantize, count = SCHEMES[scheme]
    base, made = tmp_path / "base.onnx", tmp_path / "made.onnx"
    quantize(floating, base)
    adapter = Adapter(targets=TARGETS)
    manifest = add_slots(base, made, adapters=[adapter]).manifest
    assert len(manifest.slots) == count
    onnx.checker.check_model(str(made))
    ids = RANDOM.integers(0, ROWS, size=(3, 4))
    plain, session = switchable.open_cpu(base), switchable.open_cpu(made)
    (before,) = plain.run(None, {"ids": ids})
    assert switchable.same_bits(session.run(None, {"ids": ids}), [before])
    linear = Adapter(targets=TARGETS[1:])
    (after,) = session.run(None, {"ids": ids, **factors_for(manifest, linear).arrays})
    table = numpy_helper.to_array(onnx.load(floating).graph.initializer[0])
    wanted = table[ids] @ switchable.change(TARGETS[1]).T
    error = np.abs(after - before - wanted).max() / np.abs(wanted).max()
    assert error < (0.05 if scheme == "QDQ static" else 1e-4)  # what the matrix reads is rounded there
    (both,) = session.run(None, {"ids": ids, **factors_for(manifest, adapter).arrays})
    assert not np.array_equal(both, after)


def test_patterns_find_quantized_weights(floating: Path, tmp_path: Path) -> None:
    """Names that a quantizer lengthened are matched as they were."""
    base = tmp_path / "base.onnx"
    nbits(floating, base, QuantFormat.QOperator)
    manifest = add_slots(base, tmp_path / "made.onnx", patterns=["*.weight"]).manifest
    assert set(manifest.slots) == {"layer.weight", "table.weight"}
    assert {name: slot.kind for name, slot in manifest.slots.items()} == {
        "layer.weight": Kind.LINEAR,
        "table.weight": Kind.EMBEDDING,
    }
    assert manifest.slots["layer.weight"].fingerprint is None  # no float values of it are there


def test_an_input_that_is_never_a_number_is_refused(floating: Path, tmp_path: Path) -> None:
    """Where one quantized operator feeds the next, there is nothing that a branch could read, and that is said."""
    base = tmp_path / "base.onnx"
    quantize_dynamic(str(floating), str(base))
    with pytest.raises(InvalidInputError, match=r"2 of 2 targets get no slot: O-003 at layer\.weight"):
        add_slots(base, tmp_path / "made.onnx", adapters=[Adapter(targets=TARGETS)])


def test_other_axes_are_refused(floating: Path, tmp_path: Path) -> None:
    """A target that has not the lengths of the quantized matrix is refused by name."""
    base = tmp_path / "base.onnx"
    nbits(floating, base, QuantFormat.QOperator)
    wrong: Target = switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (OUT, IN))
    with pytest.raises(InvalidInputError, match="the adapter changes"):
        add_slots(base, tmp_path / "made.onnx", adapters=[Adapter(targets=(wrong,))])
