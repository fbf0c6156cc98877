"""Two ONNX models give the adapter back that was merged, under the checkpoint's names and in its orientation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
import tiny_models
from click.testing import CliRunner
from genai_model import MODEL, torch_model
from onnx import helper, numpy_helper
from onnx_models import adapter_of, graph, linear_adapter
from peft import LoraConfig, get_peft_model

from lora_registry.adapter import Adapter, Kind
from lora_registry.algebra.extract import Extraction, extract
from lora_registry.algebra.truncation import Truncation
from lora_registry.cli import main
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.pairs import open_pair
from lora_registry.ops.agreement import agree
from lora_registry.ops.change import delta
from lora_registry.ops.probe import certify

Exports = Callable[[str, str], Path]
RANDOM = np.random.default_rng(5)


def extracted(base: Path, tuned: Path, **options: Any) -> Extraction:
    """What comes out of two models when no rank is asked for."""
    first, second = open_pair(base, tuned)
    return extract(first, second, Truncation(), readings=first.readings, **options)


MODULES = {
    "llama-untied": ["q_proj", "v_proj", "down_proj", "lm_head"],
    "gpt2": ["c_attn", "c_fc"],
    "bert": ["query", "value", "word_embeddings"],
    "cnn": ["stem", "pointwise", "along", "head"],
}


@pytest.mark.parametrize("how", ["raw", "optimized", "torchscript"])
@pytest.mark.parametrize("name", MODULES)
def test_what_was_merged_comes_out_again(name: str, how: str, exports: Exports, tmp_path: Path) -> None:
    """Names, kinds, layouts and ranks are the adapter's, and so are the probes; merged again, it is the same model."""
    model = tiny_models.MODELS[name]()
    modules = [each for each, _ in model.named_modules() if each.rpartition(".")[2] in MODULES[name]]
    wrapped = get_peft_model(model, LoraConfig(r=3, lora_alpha=6, target_modules=modules, init_lora_weights=False))
    adapter = adapter_of(wrapped)
    base = exports(name, how)
    merge_onnx(adapter, base, tmp_path / "merged.onnx")

    found = extracted(base, tmp_path / "merged.onnx")

    made = replace(found.adapter, targets=tuple(replace(t, name=t.name.removeprefix("model.")) for t in found.adapter))
    said = {target.name: (target.kind, target.layout, target.shape, 3) for target in adapter}
    assert {t.name: (t.kind, t.layout, t.shape, t.rank) for t in made} == said
    assert found.rounding == ()
    assert agree(certify(adapter), certify(made), 1e-4) == []
    assert all(record.retention.energy > 1 - 1e-9 for record in found.targets)

    merge_onnx(found.adapter, base, tmp_path / "again.onnx")
    one, other = OnnxModel.open(tmp_path / "merged.onnx"), OnnxModel.open(tmp_path / "again.onnx")
    assert one.initializers.keys() == other.initializers.keys()
    for each in one.initializers:
        wanted = one.array(each)
        np.testing.assert_allclose(
            other.array(each), wanted, rtol=0, atol=1e-6 * max(1.0, np.abs(wanted).max(initial=0))
        )


def test_tensors_that_a_builder_packed_come_out_apart(tmp_path: Path) -> None:
    """Queries, keys and values of onnxruntime-genai's builder lie in one initializer, and are targets of their own."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    adapter = adapter_of(get_peft_model(torch_model(), config))
    merge_onnx(adapter, MODEL, tmp_path / "merged.onnx")
    found = extracted(MODEL, tmp_path / "merged.onnx").adapter
    assert {target.name: target.rank for target in found} == {target.name: 2 for target in adapter}
    assert agree(certify(adapter), certify(found), 1e-4) == []


def two_layers(path: Path, dtype: Any = np.float32, **changed: np.ndarray) -> Path:
    """x·a·b with (64, 48) and (48, 40) weights, of which some are given."""
    random = np.random.default_rng(1)
    weights = {
        "a.weight": (random.standard_normal((64, 48)) * 0.02).astype(dtype),
        "b.weight": (random.standard_normal((48, 40)) * 0.02).astype(dtype),
        **{name.replace("__", "."): array for name, array in changed.items()},
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "b.weight"], ["y"]),
    ]
    graph(nodes, weights, inputs={"x": ["n", 64]}, path=path, external=True)
    return path


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_rounding_does_not_hide_the_rank(dtype: Any, tmp_path: Path) -> None:
    """In 16 bits every weight is rounded, which is a change of full rank; the rank is that of what stands above it."""
    base = two_layers(tmp_path / "base.onnx", dtype)
    target = replace(linear_adapter("a.weight", (64, 48), layout=("in", "out"), rank=3), scale=0.004)
    merge_onnx(Adapter(targets=(target,)), base, tmp_path / "merged.onnx")
    found = extracted(base, tmp_path / "merged.onnx")
    [made], [record] = found.adapter.targets, found.targets
    assert (made.name, made.kind, made.layout, made.rank) == ("a.weight", Kind.LINEAR, ("in", "out"), 3)
    error = np.linalg.norm(delta(made) - delta(target)) / np.linalg.norm(delta(target))
    assert error <= {np.float32: 1e-5, np.float16: 2e-2}.get(dtype, 0.2)
    assert record.retention.truncation == pytest.approx(record.noise, rel=0.3)


def test_a_change_of_no_low_rank_has_an_error_that_is_told(tmp_path: Path) -> None:
    """Asked for a rank, the report has the share of the energy that is kept, target by target."""
    base = two_layers(tmp_path / "base.onnx")
    dense = (RANDOM.standard_normal((64, 48)) * 0.02).astype(np.float32)
    tuned = two_layers(tmp_path / "tuned.onnx", a__weight=dense)
    with pytest.raises(UnsupportedError, match="say how much to keep"):
        extracted(base, tuned)
    words = ["extract", "--base", base, "--tuned", tuned, "-o", tmp_path / "x.safetensors", "--rank", "5", "--json"]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    [record] = json.loads(result.stdout)["targets"]
    before = numpy_helper.to_array(onnx.load(base).graph.initializer[0])
    values = np.linalg.svd(dense.astype(np.float64) - before, compute_uv=False)
    assert (record["target"], record["rank"]) == ("a.weight", 5)
    assert record["energy"] == pytest.approx(np.sum(values[:5] ** 2) / np.sum(values**2), rel=1e-6)


def test_models_that_are_no_pair_are_refused_by_name(tmp_path: Path) -> None:
    """Another operator, an initializer that the other lacks, another shape, and one that is no ONNX model."""
    base = two_layers(tmp_path / "base.onnx")
    proto = onnx.load(base)
    proto.graph.node[1].op_type = "Gemm"
    onnx.save(proto, tmp_path / "gemm.onnx")
    with pytest.raises(InvalidInputError, match=r"not of one graph: node 1 is MatMul in .*base.onnx and Gemm in"):
        open_pair(base, tmp_path / "gemm.onnx")
    proto = onnx.load(base)
    proto.graph.initializer[1].name = proto.graph.node[1].input[1] = "c.weight"
    onnx.save(proto, tmp_path / "renamed.onnx")
    with pytest.raises(InvalidInputError, match=r"b\.weight only in .*base\.onnx; c\.weight only in .*renamed\.onnx"):
        open_pair(base, tmp_path / "renamed.onnx")
    words = ["extract", "--base", str(base), "--tuned", str(tmp_path), "-o", str(tmp_path / "x.safetensors")]
    assert CliRunner().invoke(main, words).exit_code == 2
    with pytest.raises(InvalidInputError, match="nothing to extract"):
        extracted(base, base)


def quantized(path: Path, *, step: float, weight: float = 0.5) -> Path:
    """x·DequantizeLinear(q), and a float matrix behind it."""
    integers = np.random.default_rng(2).integers(-100, 100, (16, 16)).astype(np.int8)
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "f"], ["y"]),
    ]
    weights = {"q": integers, "s": np.float32(step).reshape(()), "f": np.eye(16, dtype=np.float32) * weight}
    graph(nodes, weights, inputs={"x": ["n", 16]}, path=path)
    return path


def test_quantized_weights_that_differ_are_refused_and_others_are_not(tmp_path: Path) -> None:
    """A step of another size is another matrix, of which nobody knows what was added; equal ones stand by."""
    base = quantized(tmp_path / "base.onnx", step=0.01)
    with pytest.raises(UnsupportedError, match="s: quantized, and different"):
        open_pair(base, quantized(tmp_path / "step.onnx", step=0.02))
    change = numpy_helper.to_array(onnx.load(base).graph.initializer[2]).copy()
    change[0] += 0.25
    proto = onnx.load(base)
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(change, "f"))
    onnx.save(proto, tmp_path / "tuned.onnx")
    [made] = extracted(base, tmp_path / "tuned.onnx").adapter.targets
    assert (made.name, made.rank) == ("f", 1)


def test_integers_of_four_bits_are_compared_as_bytes(tmp_path: Path) -> None:
    """No checkpoint has such a type; equal ones are no obstacle, and others are refused."""
    paths = [tmp_path / name for name in ("base.onnx", "same.onnx", "other.onnx")]
    for path, first in zip(paths, (1, 1, 2), strict=True):
        packed = helper.make_tensor("q", onnx.TensorProto.INT4, [4, 4], [first] + [3] * 15)
        nodes = [
            helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
            helper.make_node("MatMul", ["x", "w"], ["h"]),
            helper.make_node("MatMul", ["h", "f"], ["y"]),
        ]
        moved = np.eye(4, dtype=np.float32) + (0.5 if path.name == "same.onnx" else 0.0)
        weights = {"s": np.float32(0.1).reshape(()), "f": moved.astype(np.float32)}
        proto = graph(nodes, weights, inputs={"x": ["n", 4]})
        proto.graph.initializer.append(packed)
        onnx.save(
            proto, path, save_as_external_data=path.name != "base.onnx", location=f"{path.name}.data", size_threshold=0
        )
    [made] = extracted(paths[0], paths[1]).adapter.targets
    assert (made.name, made.rank) == ("f", 1)
    with pytest.raises(UnsupportedError, match="q: quantized"):
        open_pair(paths[0], paths[2])
