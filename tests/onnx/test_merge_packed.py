"""Several tensors of a checkpoint in one initializer: found part by part, changed part by part, or refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from genai_model import BASE, MODEL, logits, torch_model
from onnx import helper
from onnx_models import adapter_of, graph, linear_adapter, run_onnx, tensor_of
from parity import relative_error
from peft import LoraConfig
from peft_adapters import make_peft_adapter, peft_warnings_off
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import InvalidInputError
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.window import Window, find
from lora_registry.ops.change import delta, merged

IDS = np.random.default_rng(0).integers(3, 39, (2, 7))
RANDOM = np.random.default_rng(3)

CASES: dict[str, dict[str, Any]] = {
    "queries-and-values": {"target_modules": ["q_proj", "v_proj"]},
    "all": {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"]},
    "dora": {"target_modules": ["q_proj", "k_proj", "up_proj"], "use_dora": True},
    "rslora-embedding": {"target_modules": ["k_proj", "embed_tokens"], "use_rslora": True},
    "patterns-norm": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"q_proj": 3},
        "alpha_pattern": {"q_proj": 17},
        "modules_to_save": ["norm"],
    },
}


@pytest.mark.parametrize("base", [None, BASE], ids=["by-name", "with-base"])
@pytest.mark.parametrize("case", CASES)
def test_a_graph_of_genai_s_builder_equals_peft(case: str, base: Path | None, tmp_path: Path) -> None:
    """Queries, keys and values lie in one matrix; each target changes its columns of it."""
    with peft_warnings_off():
        config = LoraConfig(**{"r": 4, "lora_alpha": 6, **CASES[case]})
    wrapped = make_peft_adapter(torch_model(), config, tmp_path / "adapter")
    adapter = adapter_of(wrapped)
    receipt = merge_onnx(adapter, MODEL, tmp_path / "merged.onnx", base=base)
    with torch.no_grad():
        expected = wrapped(torch.from_numpy(IDS)).logits.numpy()
    assert relative_error(logits(tmp_path / "merged.onnx", IDS), expected) < 1e-5
    assert relative_error(logits(MODEL, IDS), expected) > 1e-2
    assert {record.target for record in receipt.tensors} == {target.name for target in adapter}


def test_parts_are_found_by_value_where_no_name_helps(tmp_path: Path) -> None:
    """The same graph with its names and its producer taken away, and the checkpoint beside it."""
    proto = onnx.load(MODEL)
    proto.producer_name = ""
    renamed = {tensor.name: f"w{number}" for number, tensor in enumerate(proto.graph.initializer)}
    for tensor in proto.graph.initializer:
        tensor.name = renamed[tensor.name]
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
        node.input[:] = [renamed.get(name, name) for name in node.input]
    onnx.save(proto, tmp_path / "nameless.onnx")
    wrapped = make_peft_adapter(
        torch_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"]), tmp_path / "adapter"
    )
    adapter = adapter_of(wrapped)
    with pytest.raises(InvalidInputError, match="O-001"):
        merge_onnx(adapter, tmp_path / "nameless.onnx", tmp_path / "merged.onnx")
    receipt = merge_onnx(adapter, tmp_path / "nameless.onnx", tmp_path / "merged.onnx", base=BASE)
    assert {rule for record in receipt.tensors for rule in record.evidence["rules"]} == {"value-match"}
    with torch.no_grad():
        expected = wrapped(torch.from_numpy(IDS)).logits.numpy()
    assert relative_error(logits(tmp_path / "merged.onnx", IDS), expected) < 1e-5


def test_a_builder_graph_of_another_base_is_refused(tmp_path: Path) -> None:
    """The names fit, the values of the checkpoint do not."""
    shutil.copytree(BASE, tmp_path / "base")
    other = torch_model()
    with torch.no_grad():
        other.model.layers[0].self_attn.q_proj.weight.add_(0.01)
    other.save_pretrained(tmp_path / "base")
    target = linear_adapter("model.layers.0.self_attn.q_proj.weight", (64, 16))
    with pytest.raises(InvalidInputError, match="O-009"):
        merge_onnx(Adapter(targets=(target,)), MODEL, tmp_path / "merged.onnx", base=tmp_path / "base")


def packed_by_heads(parts: Sequence[np.ndarray], heads: int) -> np.ndarray:
    """[in, heads·3·width], as onnxruntime.transformers packs the attention of diffusers' UNets."""
    inputs = parts[0].shape[0]
    return np.dstack([part.reshape(inputs, heads, -1) for part in parts]).reshape(inputs, -1)


@pytest.mark.parametrize("form", ["behind", "by-heads", "rows"])
@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("magnitude", [False, True], ids=["lora", "dora"])
def test_every_packing_is_found_by_its_values(form: str, external: bool, magnitude: bool, tmp_path: Path) -> None:
    """One behind the other, head by head, or as rows; only the columns of the targets change, those of DoRA too."""
    names = [f"attn.{letter}.weight" for letter in "qkv"]
    parts = [RANDOM.standard_normal((8, 12)).astype(np.float32) for _ in names]
    targets = [linear_adapter(name, (12, 8)) for name in (names[0], names[2])]
    if magnitude:
        targets = [
            replace(target, tensors={**target.tensors, "magnitude": tensor_of(torch.rand(12) + 0.5)})
            for target in targets
        ]
    after = [merged(targets[0], parts[0].T).T, parts[1], merged(targets[1], parts[2].T).T]
    packers = {
        "behind": lambda held: np.concatenate(held, 1),
        "by-heads": lambda held: packed_by_heads(held, 3),
        "rows": lambda held: np.concatenate([part.T for part in held], 0),
    }
    pack = packers[form]
    node = (
        helper.make_node("Gemm", ["x", "packed"], ["y"], transB=1)
        if form == "rows"
        else helper.make_node("MatMul", ["x", "packed"], ["y"])
    )
    (tmp_path / "base").mkdir()
    path = tmp_path / "base" / "b.onnx"
    graph([node], {"packed": np.ascontiguousarray(pack(parts))}, inputs={"x": ["n", 8]}, path=path, external=external)
    save_file({n: np.ascontiguousarray(p.T) for n, p in zip(names, parts, strict=True)}, tmp_path / "c.safetensors")

    merge_onnx(Adapter(targets=tuple(targets)), path, tmp_path / "m.onnx", base=tmp_path / "c.safetensors")

    written = OnnxModel.open(tmp_path / "m.onnx").array("packed")
    np.testing.assert_allclose(written, pack(after), rtol=1e-5, atol=1e-6)
    untouched = pack([np.zeros_like(parts[0]), np.ones_like(parts[1]), np.zeros_like(parts[2])]) == 1
    np.testing.assert_array_equal(written[untouched], pack(parts)[untouched])


def test_a_packed_matrix_that_others_read_gets_one_copy(tmp_path: Path) -> None:
    """Two targets change parts of one copy, and the other reader keeps the original."""
    parts = [RANDOM.standard_normal((8, 8)).astype(np.float32) for _ in "qk"]
    nodes = [
        helper.make_node("MatMul", ["x", "packed"], ["p"], name="mine"),
        helper.make_node("ReduceSum", ["packed"], ["s"], name="other", keepdims=0),
        helper.make_node("Add", ["p", "s"], ["y"], name="sum"),
    ]
    graph(nodes, {"packed": np.concatenate(parts, 1)}, inputs={"x": ["n", 8]}, path=tmp_path / "b.onnx")
    save_file(
        {f"{n}.weight": np.ascontiguousarray(p.T) for n, p in zip("qk", parts, strict=True)}, tmp_path / "c.safetensors"
    )
    targets = tuple(linear_adapter(f"{name}.weight", (8, 8)) for name in "qk")
    merge_onnx(Adapter(targets=targets), tmp_path / "b.onnx", tmp_path / "m.onnx", base=tmp_path / "c.safetensors")
    x = torch.randn(3, 8)
    after = np.concatenate([part + delta(target).T for part, target in zip(parts, targets, strict=True)], 1)
    assert (
        relative_error(run_onnx(tmp_path / "m.onnx", {"x": x}), x.numpy() @ after + np.concatenate(parts, 1).sum())
        < 1e-5
    )


def test_the_attention_of_onnxruntime_is_changed_in_weights_and_bias(tmp_path: Path) -> None:
    """com.microsoft Attention holds queries, keys and values in one matrix and their biases in one vector."""
    names, width = ("query", "key", "value"), 8
    weights = {name: RANDOM.standard_normal((width, width)).astype(np.float32) for name in names}
    biases = {name: RANDOM.standard_normal(width).astype(np.float32) for name in names}
    packed = {
        "qkv_weight": np.concatenate([weights[name].T for name in names], 1),
        "qkv_bias": np.concatenate([biases[name] for name in names]),
    }
    node = helper.make_node(
        "Attention", ["x", "qkv_weight", "qkv_bias"], ["y"], domain="com.microsoft", num_heads=2, name="Attention_0"
    )
    shape = [2, 3, width]
    graph([node], packed, inputs={"x": shape}, output_shape=shape, path=tmp_path / "b.onnx")
    save_file(
        {f"{n}.weight": weights[n] for n in names} | {f"{n}.bias": biases[n] for n in names}, tmp_path / "c.safetensors"
    )
    value = linear_adapter("value.weight", (width, width))
    bias = Target(
        name="value.bias",
        kind=Kind.BIAS,
        layout=("out",),
        shape=(width,),
        tensors={"delta": tensor_of(torch.ones(width))},
    )
    merge_onnx(
        Adapter(targets=(value, bias)), tmp_path / "b.onnx", tmp_path / "m.onnx", base=tmp_path / "c.safetensors"
    )
    by_hand = packed["qkv_weight"].copy()
    by_hand[:, 2 * width :] += delta(value).T
    changed = {"qkv_weight": by_hand, "qkv_bias": packed["qkv_bias"] + np.repeat([0, 0, 1], width).astype(np.float32)}
    graph([node], changed, inputs={"x": shape}, output_shape=shape, path=tmp_path / "expected.onnx")
    x = torch.randn(*shape)
    expected = run_onnx(tmp_path / "expected.onnx", {"x": x})
    assert relative_error(run_onnx(tmp_path / "m.onnx", {"x": x}), expected) < 1e-5


def test_a_part_that_occurs_twice_is_not_guessed() -> None:
    """Equal queries and keys: nothing tells which is which."""
    part = RANDOM.integers(0, 99, (4, 6)).astype(np.uint32)
    whole = np.concatenate([part, part], 1)
    assert find(whole, part, 1) is None
    assert find(np.concatenate([part, part + 1], 1), part, 1) == Window(1, 0, 6)
    assert find(whole, part + 1, 1) is None
