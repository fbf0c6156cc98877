"""Merging into quantized ONNX models: changes kept beside their weights, or quantized again, under ONNX Runtime."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import quantized_graphs
from genai_model import MODEL, logits, torch_model
from onnx import TensorProto, helper, numpy_helper
from onnx_models import adapter_of
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from parity import relative_error
from peft import LoraConfig
from peft_adapters import make_peft_adapter, peft_warnings_off
from quantized_graphs import FORMS, HEIGHT, NAME, WIDTH, inputs, nbits, run, weights
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import IntegrityError, InvalidInputError, UnsupportedError
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.names import Names
from lora_registry.onnx.quantized.weight import weight_of
from lora_registry.onnx.slots.quantized_seats import quantized_seats
from lora_registry.ops.arrays import from_array
from lora_registry.ops.change import delta, merged

RANDOM = np.random.default_rng(5)
IDS = np.random.default_rng(0).integers(3, 39, (2, 7))


def change(*, name: str = NAME, size: float = 0.1, kind: Kind = Kind.LINEAR, **tensors: np.ndarray) -> Target:
    """A change of rank 3 with factors of ``size``, scale 1.5."""
    factors = {
        "A": (RANDOM.standard_normal((3, WIDTH)) * size).astype(np.float32),
        "B": (RANDOM.standard_normal((HEIGHT, 3)) * size).astype(np.float32),
    }
    held = {role: from_array(array) for role, array in (factors | tensors).items()}
    return Target(name=name, kind=kind, layout=("out", "in"), shape=(HEIGHT, WIDTH), tensors=held, scale=1.5)


def held(path: Path) -> np.ndarray:
    """What the one quantized weight of a model stands for, (out, in)."""
    model = OnnxModel.open(path)
    (seat,) = quantized_seats(model, Names(model))
    return weight_of(model, seat).values(("out", "in"))


def bytes_of(path: Path) -> dict[str, bytes]:
    """The elements of every initializer, by name."""
    return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in onnx.load(path).graph.initializer}


# -- beside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_a_change_is_kept_beside_the_weight_and_nothing_of_it_is_lost(form: str, tmp_path: Path) -> None:
    """y = the base's own y + s·x·AᵀBᵀ, with x as the operator reads it; no code changes."""
    base, target = FORMS[form](tmp_path / "base.onnx"), change()
    receipt = merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx")
    onnx.checker.check_model(str(tmp_path / "merged.onnx"))
    x = seen(base)
    expected = run(base, inputs()) + x @ delta(target).T
    assert np.abs(run(tmp_path / "merged.onnx", inputs()) - expected).max() < 1e-5
    assert bytes_of(base).items() <= bytes_of(tmp_path / "merged.onnx").items()
    (record,) = receipt.tensors
    assert record.evidence["kept"] == "beside"
    assert record.fidelity is None
    assert any("kept beside" in note for note in receipt.notes)


def seen(path: Path) -> np.ndarray:
    """The activations that the operator gets: rounded, where the model has calibrated ranges."""
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    if "x_scale" not in initializers:
        return inputs()
    scale, zero = initializers["x_scale"], initializers["x_zero_point"].astype(np.int32)
    limits = np.iinfo(initializers["x_zero_point"].dtype)
    return (np.clip(np.rint(inputs() / scale) + zero, limits.min, limits.max) - zero).astype(np.float32) * scale


@pytest.mark.parametrize("form", ["nbits-4", "nbits-8-zeros", "qdq-4", "float8", "nbits-4-bias"])
def test_magnitudes_scale_what_weight_and_change_give_together(form: str, tmp_path: Path) -> None:
    """DoRA: y = x·W'ᵀ + b with W' = m ∘ (W_q + sBA) / ‖W_q + sBA‖; the bias is not scaled."""
    make = nbits(4, symmetric=True, bias=True) if form == "nbits-4-bias" else FORMS[form]
    base = make(tmp_path / "base.onnx")
    magnitude = RANDOM.random(HEIGHT).astype(np.float32) + 0.5
    target = change(magnitude=magnitude)
    merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx")
    bias = np.linspace(-1, 1, HEIGHT) if form == "nbits-4-bias" else 0
    expected = inputs() @ merged(target, held(base)).T + bias
    assert np.abs(run(tmp_path / "merged.onnx", inputs()) - expected).max() < 1e-5


def test_magnitudes_beside_an_operator_with_a_quantized_bias(tmp_path: Path) -> None:
    """An INT32 bias of Gemm is a constant too; its output is rounded to the calibrated range before the branch."""
    base, target = FORMS["qdq-gemm"](tmp_path / "base.onnx"), change(magnitude=np.full(HEIGHT, 0.9, np.float32))
    merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx")
    gain = 0.9 / np.linalg.norm(held(base) + delta(target), axis=1)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(base).graph.initializer}
    bias = tensors["model.layer.bias_quantized"] * tensors["model.layer.bias_quantized_scale"]
    expected = gain * (run(base, inputs()) + seen(base) @ delta(target).T) + (1 - gain) * bias
    assert np.abs(run(tmp_path / "merged.onnx", inputs()) - expected).max() < 1e-5


def test_a_second_adapter_goes_beside_the_first(tmp_path: Path) -> None:
    """Sums have no order; magnitudes do, and are refused."""
    base, first, second = FORMS["nbits-4"](tmp_path / "base.onnx"), change(), change()
    merge_onnx(Adapter(targets=(first,)), base, tmp_path / "one.onnx")
    merge_onnx(Adapter(targets=(second,)), tmp_path / "one.onnx", tmp_path / "two.onnx")
    onnx.checker.check_model(str(tmp_path / "two.onnx"))
    expected = run(base, inputs()) + inputs() @ (delta(first) + delta(second)).T
    assert np.abs(run(tmp_path / "two.onnx", inputs()) - expected).max() < 1e-5
    scaled = Adapter(targets=(change(magnitude=np.ones(HEIGHT, np.float32)),))
    with pytest.raises(UnsupportedError, match="an earlier merge keeps a change beside"):
        merge_onnx(scaled, tmp_path / "one.onnx", tmp_path / "three.onnx")
    merge_onnx(scaled, base, tmp_path / "scaled.onnx")
    with pytest.raises(UnsupportedError, match="an earlier merge keeps a change beside"):
        merge_onnx(Adapter(targets=(first,)), tmp_path / "scaled.onnx", tmp_path / "three.onnx")


def test_half_precision_activations_get_half_precision_factors(tmp_path: Path) -> None:
    """A and s·B are rounded once each."""
    base = FORMS["nbits-4"](tmp_path / "float.onnx")
    tensors = {name: numpy_helper.to_array(each) for each in onnx.load(base).graph.initializer for name in [each.name]}
    tensors[f"{NAME}_scales"] = tensors[f"{NAME}_scales"].astype(np.float16)
    node = onnx.load(base).graph.node[0]
    half = quantized_graphs.model([node], tensors, tmp_path / "half.onnx", dtype=TensorProto.FLOAT16)
    target = change()
    merge_onnx(Adapter(targets=(target,)), half, tmp_path / "merged.onnx")
    x = inputs(dtype=np.float16)
    expected = run(half, x).astype(np.float32) + x.astype(np.float32) @ delta(target).T
    assert np.abs(run(tmp_path / "merged.onnx", x) - expected).max() < 5e-3
    made = {
        tensor.data_type for tensor in onnx.load(tmp_path / "merged.onnx").graph.initializer if "loreg" in tensor.name
    }
    assert made == {TensorProto.FLOAT16}


@pytest.mark.parametrize("quantized", ["GatherBlockQuantized", "DequantizeLinear"])
def test_rows_of_a_quantized_embedding_get_their_share_beside(quantized: str, tmp_path: Path) -> None:
    """Gather of A's rows, times B; to quantize rows again is refused where their form is not read."""
    rows = 40
    codes = np.random.default_rng(1).integers(0, 16, (rows, 32), dtype=np.uint8)
    if quantized == "GatherBlockQuantized":
        packed = numpy_helper.from_array((codes[:, ::2] | codes[:, 1::2] << 4).reshape(-1), "packed")
        table = onnx.TensorProto(name="model.table.weight_Q4", data_type=TensorProto.UINT4, dims=[rows, 32])
        table.raw_data = packed.raw_data
        scales = np.full((rows, 2), 0.1, np.float32)
        nodes = [
            helper.make_node(
                "GatherBlockQuantized",
                ["model.table.weight_Q4", "ids", "s"],
                ["y"],
                name="/model/table/Gather_Q4",
                domain="com.microsoft",
                block_size=16,
                gather_axis=0,
                quantize_axis=1,
            )
        ]
        base = quantized_graphs.model(nodes, {"s": scales}, tmp_path / "base.onnx")
        proto = onnx.load(base)
        proto.graph.initializer.append(table)
        onnx.save(proto, base)
    else:
        nodes = [
            helper.make_node("DequantizeLinear", ["model.table.weight_quantized", "s"], ["w"], name="dequantize"),
            helper.make_node("Gather", ["w", "ids"], ["y"], name="/model/table/Gather"),
        ]
        tensors = {"model.table.weight_quantized": codes, "s": np.array(0.1, np.float32)}
        base = quantized_graphs.model(nodes, tensors, tmp_path / "base.onnx")
    a, b = (RANDOM.standard_normal(shape).astype(np.float32) for shape in ((2, rows), (32, 2)))
    factors = {"A": from_array(a), "B": from_array(b)}
    target = Target(
        name="model.table.weight", kind=Kind.EMBEDDING, layout=("in", "out"), shape=(rows, 32), tensors=factors
    )
    merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx")
    ids = np.array([3, 0, 39, 3])
    assert np.abs(run(tmp_path / "merged.onnx", ids) - (run(base, ids) + a.T[ids] @ b.T)).max() < 1e-5
    if quantized == "GatherBlockQuantized":
        with pytest.raises(
            UnsupportedError, match=r"GatherBlockQuantized .* holds it in a form that loreg does not read"
        ):
            merge_onnx(Adapter(targets=(target,)), base, tmp_path / "again.onnx", requantize=True)
        assert not (tmp_path / "again.onnx").exists()


# -- quantized again ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitudes", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_is_quantized_again_as_the_receipt_says(form: str, magnitudes: bool, tmp_path: Path) -> None:
    """The graph has the same nodes; the new codes are the nearest to W', within a step of them."""
    base = FORMS[form](tmp_path / "base.onnx")
    target = change(size=0.3, **({"magnitude": np.ones(HEIGHT, np.float32)} if magnitudes else {}))
    receipt = merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx", requantize=True, min_retention=0.0)
    before, after, wanted = held(base), held(tmp_path / "merged.onnx"), merged(target, held(base))
    (record,) = receipt.tensors
    assert record.fidelity is not None
    error = np.linalg.norm(after - wanted) / np.linalg.norm(wanted - before)
    assert record.fidelity.relative_error == pytest.approx(error, rel=1e-3)
    assert error < {"nbits-float-zeros": 0.8, "float8": 0.1}.get(form, 0.25 if "4" in form else 0.05)
    graphs = [onnx.load(path).graph for path in (base, tmp_path / "merged.onnx")]
    assert list(graphs[0].node) == list(graphs[1].node)
    changed = {name for name, content in bytes_of(base).items() if bytes_of(tmp_path / "merged.onnx")[name] != content}
    assert changed == set(record.parts)
    calibrated = form in ("qdq-tensor", "qdq-channel", "qdq-uint8", "qdq-gemm")
    assert any("were calibrated for the base" in warning for warning in receipt.warnings) == calibrated


@pytest.mark.parametrize("form", ["nbits-4", "nbits-8", "qdq-4-zeros", "float8"])
def test_the_new_codes_are_what_onnx_runtime_computes_with(form: str, tmp_path: Path) -> None:
    """ONNX Runtime's y against that of the values that stand in the file."""
    base, target = FORMS[form](tmp_path / "base.onnx"), change(size=0.3)
    merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx", requantize=True, min_retention=0.0)
    expected = inputs() @ held(tmp_path / "merged.onnx").T
    assert np.abs(run(tmp_path / "merged.onnx", inputs()) - expected).max() < 1e-4


def test_a_bias_of_integers_follows_the_scale_of_its_weight(tmp_path: Path) -> None:
    """Its scale is that of the activations times that of the weight; what it stands for stays the same."""
    base, target = FORMS["qdq-gemm"](tmp_path / "base.onnx"), change(size=0.5)
    merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx", requantize=True)
    before, after = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (base, tmp_path / "merged.onnx")
    )
    assert not np.array_equal(before[f"{NAME}_scale"], after[f"{NAME}_scale"])
    scale = after["model.layer.bias_quantized_scale"]
    assert np.allclose(scale, after["x_scale"] * after[f"{NAME}_scale"], rtol=1e-6)
    values = [each["model.layer.bias_quantized"] * each["model.layer.bias_quantized_scale"] for each in (before, after)]
    assert np.abs(values[0] - values[1]).max() <= scale.max() / 2 * 1.001


def test_a_small_change_is_refused_where_little_of_it_would_survive(tmp_path: Path) -> None:
    """Four bits keep nothing of a hundredth; without a threshold of the caller's, half has to be kept."""
    base, adapter = FORMS["nbits-4"](tmp_path / "base.onnx"), Adapter(targets=(change(size=0.02),))
    with pytest.raises(IntegrityError, match=r"keep less than 50% of the change, .* Merge without --requantize"):
        merge_onnx(adapter, base, tmp_path / "merged.onnx", requantize=True)
    assert not list(tmp_path.glob("merged*"))
    receipt = merge_onnx(adapter, base, tmp_path / "merged.onnx", requantize=True, min_retention=0.0)
    (warning,) = [each for each in receipt.warnings if "is lost in MatMulNBits int4, blocks of 16" in each]
    assert "merge without --requantize" in warning


def test_a_change_of_nothing_leaves_every_byte(tmp_path: Path) -> None:
    """B is zero."""
    base, target = FORMS["nbits-4-zeros"](tmp_path / "base.onnx"), change(B=np.zeros((HEIGHT, 3), np.float32))
    receipt = merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx", requantize=True)
    assert bytes_of(base) == bytes_of(tmp_path / "merged.onnx")
    assert receipt.tensors[0].fidelity is not None
    assert receipt.tensors[0].fidelity.retention == 1.0


@pytest.mark.parametrize("form", ["nbits-4", "qdq-4"])
@pytest.mark.parametrize("again", [False, True], ids=["beside", "requantized"])
def test_external_data_are_copied_and_changed_in_place(form: str, again: bool, tmp_path: Path) -> None:
    """Packed types too; the merged model is that of the same base in one file."""
    whole, target = FORMS[form](tmp_path / "whole.onnx"), change(size=0.3)
    onnx.save(
        onnx.load(whole),
        tmp_path / "base.onnx",
        save_as_external_data=True,
        location="base.data",
        size_threshold=0,
        convert_attribute=False,
    )
    adapter = Adapter(targets=(target,))
    merge_onnx(adapter, whole, tmp_path / "one.onnx", requantize=again, min_retention=0.0 if again else None)
    (tmp_path / "out").mkdir()
    out = tmp_path / "out" / "base.onnx"
    receipt = merge_onnx(adapter, tmp_path / "base.onnx", out, requantize=again, min_retention=0.0 if again else None)
    assert bytes_of(out) == bytes_of(tmp_path / "one.onnx")
    assert np.array_equal(run(out, inputs()), run(tmp_path / "one.onnx", inputs()))
    assert (out.read_bytes() == (tmp_path / "base.onnx").read_bytes()) == again
    assert json.loads((out.parent / "base.onnx.receipt.json").read_text()) == receipt.to_json()


def test_codes_that_two_operators_read_are_cloned(tmp_path: Path) -> None:
    """The other one goes on with the old ones."""
    base = FORMS["nbits-4"](tmp_path / "one.onnx")
    proto = onnx.load(base)
    twin = onnx.NodeProto()
    twin.CopyFrom(proto.graph.node[0])
    twin.name, twin.output[0] = "/model/other/MatMul_Q4", "z"
    proto.graph.node[0].name = "/model/layer/MatMul_Q4"
    proto.graph.node.append(twin)
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", HEIGHT]))
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace(NAME, "shared")
    for node in proto.graph.node:
        node.input[:] = [each.replace(NAME, "shared") for each in node.input]
    onnx.save(proto, tmp_path / "base.onnx")
    target = change(size=0.3)
    merge_onnx(Adapter(targets=(target,)), tmp_path / "base.onnx", tmp_path / "merged.onnx", requantize=True)
    session = quantized_graphs.session(tmp_path / "merged.onnx")
    mine, other = session.run(None, {"x": inputs()})
    assert np.array_equal(other, run(base, inputs()))
    assert np.abs(mine - other).max() > 0.1


@pytest.mark.parametrize("again", [False, True], ids=["beside", "requantized"])
@pytest.mark.parametrize("bits", [4, 8])
def test_packed_queries_keys_and_values_of_genai_s_builder(bits: int, again: bool, tmp_path: Path) -> None:
    """Each target is some outputs of one MatMulNBits; the logits are those of a float model with the same weights."""
    quantizer = MatMulNBitsQuantizer(onnx.load(MODEL), bits=bits, block_size=16, is_symmetric=True)
    quantizer.process()
    base = tmp_path / "base.onnx"
    quantizer.model.save_model_to_file(str(base), use_external_data_format=False)
    with peft_warnings_off():
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"], use_dora=True)
    adapter = adapter_of(make_peft_adapter(torch_model(), config, tmp_path / "adapter"))
    out = tmp_path / "merged.onnx"
    receipt = merge_onnx(adapter, base, out, requantize=again, min_retention=0.0 if again else None)
    assert {record.target for record in receipt.tensors} == {target.name for target in adapter}
    assert relative_error(logits(out, IDS), logits(dequantized(base, tmp_path / "b.onnx"), IDS)) > 1e-2
    plain = out
    if not again:
        plain = tmp_path / "expected.onnx"
        merge_onnx(adapter, dequantized(base, tmp_path / "floats.onnx"), plain)
    assert relative_error(logits(out, IDS), logits(dequantized(plain, tmp_path / "wanted.onnx"), IDS)) < 1e-5


def dequantized(path: Path, out: Path) -> Path:
    """A model whose MatMulNBits are MatMuls by what their codes stand for, under the names that they had."""
    proto, model = onnx.load(path), OnnxModel.open(path)
    values = {
        str(seat.codes.name): weight_of(model, seat).values(("in", "out"))
        for seat in quantized_seats(model, Names(model))
    }
    for node in proto.graph.node:
        if node.op_type == "MatMulNBits":
            name = node.input[1].rpartition("_Q")[0]
            proto.graph.initializer.append(numpy_helper.from_array(values[node.input[1]].copy(), name))
            plain = helper.make_node(
                "MatMul", [node.input[0], name], [node.output[0]], name=node.name.rpartition("_Q")[0]
            )
            node.CopyFrom(plain)
    onnx.save(proto, out)
    return out


# -- what is found, and what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("form", ["nbits-4", "nbits-8-zeros", "qdq-channel", "dynamic-tensor", "float8"])
def test_a_checkpoint_confirms_a_weight_or_finds_it_without_a_name(form: str, tmp_path: Path) -> None:
    """Within half a step of the checkpoint's values; other values are refused."""
    base = FORMS[form](tmp_path / "base.onnx")
    save_file({NAME: np.ascontiguousarray(weights().T)}, tmp_path / "w.safetensors")
    save_file({NAME: np.ascontiguousarray(weights(1).T)}, tmp_path / "other.safetensors")
    adapter = Adapter(targets=(change(),))
    named = merge_onnx(adapter, base, tmp_path / "named.onnx", base=tmp_path / "w.safetensors")
    assert named.tensors[0].evidence["rules"] == ["quantized-name", "value-match"]
    proto = onnx.load(base)
    for node in proto.graph.node:
        node.name = f"n{node.name}".replace("/", "_")
        node.input[:] = [each.replace(NAME, "val_0") for each in node.input]
        node.output[:] = [each.replace(NAME, "val_0") for each in node.output]
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace(NAME, "val_0")
    onnx.save(proto, tmp_path / "unnamed.onnx")
    found = merge_onnx(adapter, tmp_path / "unnamed.onnx", tmp_path / "found.onnx", base=tmp_path / "w.safetensors")
    assert found.tensors[0].evidence["rules"] == ["value-match"]
    assert np.array_equal(run(tmp_path / "found.onnx", inputs()), run(tmp_path / "named.onnx", inputs()))
    with pytest.raises(InvalidInputError, match="no initializer holds it"):
        merge_onnx(adapter, tmp_path / "unnamed.onnx", tmp_path / "no.onnx", base=tmp_path / "other.safetensors")
    with pytest.raises(InvalidInputError, match="holds other values than the checkpoint"):
        merge_onnx(adapter, base, tmp_path / "no.onnx", base=tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (change(value=np.zeros((HEIGHT, WIDTH), np.float32)), "brings a value in its place"),
        (
            Target(
                name=NAME,
                kind=Kind.FULL,
                layout=(),
                shape=(HEIGHT, WIDTH),
                tensors={"value": from_array(np.zeros((HEIGHT, WIDTH), np.float32))},
            ),
            "a full target has no two factors",
        ),
    ],
    ids=["value", "full"],
)
def test_what_cannot_run_beside_is_refused_by_name_and_can_be_quantized(
    target: Target, said: str, tmp_path: Path
) -> None:
    """Values in the place of the weight are no sum; quantized again, they are the weight."""
    base = FORMS["nbits-8"](tmp_path / "base.onnx")
    adapter = Adapter(targets=(target,))
    with pytest.raises(UnsupportedError, match=said):
        merge_onnx(adapter, base, tmp_path / "merged.onnx")
    assert not list(tmp_path.glob("merged*"))
    merge_onnx(adapter, base, tmp_path / "merged.onnx", requantize=True)
    assert np.abs(held(tmp_path / "merged.onnx") - merged(target, held(base))).max() < 1e-2


def test_nothing_is_quantized_again_in_a_float_model(tmp_path: Path) -> None:
    """--requantize has to mean something."""
    base = quantized_graphs.plain(tmp_path / "base.onnx")
    with pytest.raises(UnsupportedError, match="nothing that the adapter changes is quantized"):
        merge_onnx(Adapter(targets=(change(),)), base, tmp_path / "merged.onnx", requantize=True)


def test_other_shapes_and_names_are_refused(tmp_path: Path) -> None:
    """One finding a target, and nothing is written."""
    base = FORMS["nbits-4"](tmp_path / "base.onnx")
    short = replace(
        change(),
        shape=(HEIGHT, WIDTH - 16),
        tensors={
            "A": from_array(np.zeros((3, WIDTH - 16), np.float32)),
            "B": from_array(np.zeros((HEIGHT, 3), np.float32)),
        },
    )
    with pytest.raises(InvalidInputError, match=r"is \[24, 64\]; the adapter changes \[24, 48\]"):
        merge_onnx(Adapter(targets=(short,)), base, tmp_path / "merged.onnx")
    with pytest.raises(InvalidInputError, match="no initializer holds it; the graph holds quantized operators"):
        merge_onnx(Adapter(targets=(change(name="model.other.weight"),)), base, tmp_path / "merged.onnx")
