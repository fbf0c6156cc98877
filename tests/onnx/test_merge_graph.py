"""What a merge does to the graph: copies for shared weights, new biases, experts, rows, subgraphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from onnx_models import graph, linear_adapter, run_onnx, run_torch, tensor_of
from parity import relative_error

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import InvalidInputError
from lora_registry.merge.onnx.model import ADAPTER_KEY, merge_onnx
from lora_registry.onnx.manifest import KEY, Manifest, Place
from lora_registry.onnx.model import OnnxModel
from lora_registry.ops.change import delta

Exports = Callable[[str, str], Path]

RANDOM = np.random.default_rng(5)
W = RANDOM.standard_normal((8, 8)).astype(np.float32)
X = torch.from_numpy(RANDOM.standard_normal((3, 8)).astype(np.float32))


def merge(
    tmp_path: Path, nodes: Sequence[onnx.NodeProto], weights: dict[str, np.ndarray], *targets: Target, **options: object
) -> Path:
    """Save the graph, merge the targets, check the output, and return its path."""
    shapes = {key: options.pop(key) for key in ("inputs", "output_shape") if key in options}
    graph(nodes, weights, **{"inputs": {"x": ["n", 8]}, **shapes}, path=tmp_path / "base.onnx")
    merge_onnx(Adapter(targets=targets), tmp_path / "base.onnx", tmp_path / "merged.onnx", **options)
    onnx.checker.check_model(str(tmp_path / "merged.onnx"), full_check=True)
    return tmp_path / "merged.onnx"


def change(target: Target) -> np.ndarray:
    """ΔW of a linear target, as (in, out)."""
    return delta(target) if target.layout == ("in", "out") else delta(target).T


def test_a_shared_weight_is_copied_for_the_target_alone(tmp_path: Path) -> None:
    """Two layers read one initializer; the adapter changes the second, and the first stays what it was."""
    nodes = [
        helper.make_node("MatMul", ["x", "val_0"], ["h"], name="/first/MatMul"),
        helper.make_node("MatMul", ["h", "val_0"], ["y"], name="/second/MatMul"),
    ]
    target = linear_adapter("second.weight", (8, 8))
    merged = merge(tmp_path, nodes, {"val_0": W}, target)
    expected = X.numpy() @ W @ (W + change(target))
    assert relative_error(run_onnx(merged, {"x": X}), expected) < 1e-5
    model = OnnxModel.open(merged)
    assert set(model.initializers) == {"val_0", "second.weight.transposed"}
    np.testing.assert_array_equal(model.array("val_0"), W)


def test_a_shared_weight_that_both_layers_change_gets_two_copies(tmp_path: Path) -> None:
    """Each layer reads its own; the original goes, since nothing reads it any more."""
    nodes = [
        helper.make_node("MatMul", ["x", "val_0"], ["h"], name="/first/MatMul"),
        helper.make_node("MatMul", ["h", "val_0"], ["y"], name="/second/MatMul"),
    ]
    first, second = linear_adapter("first.weight", (8, 8)), linear_adapter("second.weight", (8, 8))
    merged = merge(tmp_path, nodes, {"val_0": W}, first, second)
    expected = X.numpy() @ (W + change(first)) @ (W + change(second))
    assert relative_error(run_onnx(merged, {"x": X}), expected) < 1e-5
    assert set(OnnxModel.open(merged).initializers) == {"first.weight.transposed", "second.weight.transposed"}


def test_a_shared_transpose_is_copied_with_the_weight(tmp_path: Path) -> None:
    """One Transpose feeds two layers: the target gets a Transpose of its own."""
    nodes = [
        helper.make_node("Identity", ["w"], ["i"], name="i"),
        helper.make_node("Transpose", ["i"], ["t"], name="t", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["h"], name="/first/MatMul"),
        helper.make_node("MatMul", ["h", "t"], ["y"], name="/second/MatMul"),
    ]
    target = linear_adapter("second.weight", (8, 8))
    merged = merge(tmp_path, nodes, {"w": W}, target)
    expected = X.numpy() @ W.T @ (W.T + change(target))
    assert relative_error(run_onnx(merged, {"x": X}), expected) < 1e-5


def test_a_weight_that_is_a_graph_output_stays_one(tmp_path: Path) -> None:
    """The output keeps showing the base's values; only the layer changes."""
    proto = graph([helper.make_node("MatMul", ["x", "w.weight"], ["y"])], {"w.weight": W}, inputs={"x": ["n", 8]})
    proto.graph.output.append(helper.make_tensor_value_info("w.weight", TensorProto.FLOAT, [8, 8]))
    onnx.save(proto, tmp_path / "base.onnx")
    target = linear_adapter("w.weight", (8, 8), layout=("in", "out"))
    merge_onnx(Adapter(targets=(target,)), tmp_path / "base.onnx", tmp_path / "merged.onnx")
    model = OnnxModel.open(tmp_path / "merged.onnx")
    np.testing.assert_array_equal(model.array("w.weight"), W)
    expected = X.numpy() @ (W + change(target))
    assert relative_error(run_onnx(tmp_path / "merged.onnx", {"x": X}), expected) < 1e-5


def test_equal_layers_of_an_optimized_export_are_told_apart(tmp_path: Path) -> None:
    """torch's optimizer keeps one of two equal weights; merging into one layer leaves the other alone."""

    class Equal(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.b.load_state_dict(self.a.state_dict())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)))

    module, x = Equal().eval(), X[None]
    torch.onnx.export(module, (x,), str(tmp_path / "base.onnx"), input_names=["x"], dynamo=True, verbose=False)
    target = linear_adapter("b.weight", (8, 8))
    assert len([v for v in OnnxModel.open(tmp_path / "base.onnx").initializers.values() if len(v.shape) == 2]) == 1
    merge_onnx(Adapter(targets=(target,)), tmp_path / "base.onnx", tmp_path / "merged.onnx")
    with torch.no_grad():
        module.b.weight += torch.from_numpy(delta(target))
        expected = module(x).numpy()
    assert relative_error(run_onnx(tmp_path / "merged.onnx", {"x": x}), expected) < 1e-5


def test_a_zero_bias_that_the_optimizer_dropped_is_put_back(tmp_path: Path) -> None:
    """A Gemm without a bias gets one: b' = 0 + s·delta."""
    nodes = [helper.make_node("Gemm", ["x", "fc.weight"], ["y"], name="/fc/Gemm", transB=1)]
    change_of_bias = torch.arange(8, dtype=torch.float32)
    target = Target(
        name="fc.bias",
        kind=Kind.BIAS,
        layout=("out",),
        shape=(8,),
        tensors={"delta": tensor_of(change_of_bias)},
        scale=2.0,
    )
    weight = linear_adapter("fc.weight", (8, 8))
    merged = merge(tmp_path, nodes, {"fc.weight": W}, target, weight)
    expected = X.numpy() @ (W.T + change(weight)) + 2 * change_of_bias.numpy()
    assert relative_error(run_onnx(merged, {"x": X}), expected) < 1e-5


def test_a_missing_bias_of_a_matmul_is_refused(tmp_path: Path) -> None:
    """There is no input to put it into, so the target has no place, and nothing is written."""
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["y"], name="/fc/MatMul")]
    target = Target(
        name="fc.bias", kind=Kind.BIAS, layout=("out",), shape=(8,), tensors={"delta": tensor_of(torch.ones(8))}
    )
    with pytest.raises(InvalidInputError, match=r"fc\.bias"):
        merge(tmp_path, nodes, {"fc.weight": W}, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.onnx"]


def test_stacked_experts_change_one_by_one(tmp_path: Path) -> None:
    """W[e] changes by s·B[e]·A[e], here read by a batched MatMul as (expert, in, out)."""
    weight = RANDOM.standard_normal((3, 8, 6)).astype(np.float32)
    a, b = torch.randn(3, 2, 8), torch.randn(3, 6, 2)
    target = Target(
        name="experts.up",
        kind=Kind.EXPERTS,
        layout=("expert", "out", "in"),
        shape=(3, 6, 8),
        tensors={"A": tensor_of(a), "B": tensor_of(b)},
        scale=0.5,
    )
    x = torch.randn(3, 4, 8)
    nodes = [helper.make_node("MatMul", ["x", "experts.up"], ["y"])]
    merged = merge(tmp_path, nodes, {"experts.up": weight}, target, inputs={"x": [3, 4, 8]}, output_shape=[3, 4, 6])
    expected = x.numpy() @ (weight + 0.5 * (b @ a).transpose(1, 2).numpy())
    assert relative_error(run_onnx(merged, {"x": x}), expected) < 1e-5


def test_rows_of_an_embedding_are_replaced(tmp_path: Path) -> None:
    """Trained tokens take the place of their rows; the other rows keep their bytes."""
    table = RANDOM.standard_normal((8, 5)).astype(np.float32)
    rows = torch.randn(2, 5)
    target = Target(
        name="emb.weight",
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=(8, 5),
        tensors={"value": tensor_of(rows)},
        rows=(1, 6),
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["ids"], to=TensorProto.INT64),
        helper.make_node("Gather", ["emb.weight", "ids"], ["y"]),
    ]
    merged = merge(tmp_path, nodes, {"emb.weight": table}, target, inputs={"x": [8]})
    expected = table.copy()
    expected[[1, 6]] = rows.numpy()
    np.testing.assert_array_equal(OnnxModel.open(merged).array("emb.weight"), expected)


def test_a_weight_used_inside_a_branch_is_changed(tmp_path: Path) -> None:
    """An initializer of the main graph that an If branch reads is found and changed there."""
    branches = [
        helper.make_graph([node], name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", 8])])
        for name, output, node in (
            ("then", "t", helper.make_node("MatMul", ["x", "fc.weight"], ["t"], name="/fc/MatMul")),
            ("else", "e", helper.make_node("Identity", ["x"], ["e"])),
        )
    ]
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1])]
    target = linear_adapter("fc.weight", (8, 8))
    merged = merge(tmp_path, nodes, {"fc.weight": W, "yes": np.array(True)}, target)
    expected = X.numpy() @ (W + change(target))
    assert relative_error(run_onnx(merged, {"x": X}), expected) < 1e-5


def test_branches_may_use_one_name_for_two_values(tmp_path: Path) -> None:
    """Each branch of an If has an initializer ``c`` of its own, in the data file; both survive the merge."""
    constants = {"then": np.full(300, 2.0, np.float32), "else": np.full(300, 3.0, np.float32)}
    branches = []
    for name, values in constants.items():
        node = helper.make_node("Add", ["h", "c"], [f"{name}_y"])
        result = helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 300])
        branches.append(
            helper.make_graph([node], name, [], [result], initializer=[onnx.numpy_helper.from_array(values, "c")])
        )
    nodes = [
        helper.make_node("MatMul", ["x", "fc.weight"], ["h"]),
        helper.make_node("If", ["no"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    weight = RANDOM.standard_normal((8, 300)).astype(np.float32)
    target = linear_adapter("fc.weight", (8, 300), layout=("in", "out"))
    (tmp_path / "base").mkdir()
    weights = {"fc.weight": weight, "no": np.array(False)}
    path = tmp_path / "base" / "b.onnx"
    graph(nodes, weights, inputs={"x": ["n", 8]}, output_shape=["n", 300], path=path, external=True)
    merge_onnx(Adapter(targets=(target,)), path, tmp_path / "merged.onnx")
    expected = X.numpy() @ (weight + change(target)) + 3.0
    # ONNX Runtime 1.32 looks for the data of a branch in the working directory, so onnx's own evaluator runs this.
    (actual,) = ReferenceEvaluator(onnx.load(tmp_path / "merged.onnx")).run(None, {"x": X.numpy()})
    assert relative_error(actual, expected) < 1e-5


def test_a_weight_that_a_model_function_reads_is_changed(tmp_path: Path) -> None:
    """Calls of functions are replaced by what they do, so that it shows who reads the weight, and how."""
    function = helper.make_function(
        "local",
        "Layer",
        ["a", "b"],
        ["c"],
        [helper.make_node("Transpose", ["b"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["a", "t"], ["c"])],
        [helper.make_opsetid("", 20)],
    )
    calls = [
        helper.make_node("Layer", ["x", "fc.weight"], ["h"], domain="local", name="one"),
        helper.make_node("Layer", ["h", "other.weight"], ["y"], domain="local", name="two"),
    ]
    proto = graph(calls, {"fc.weight": W, "other.weight": W}, inputs={"x": ["n", 8]})
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(proto, tmp_path / "base.onnx")
    target = linear_adapter("fc.weight", (8, 8))
    merge_onnx(Adapter(targets=(target,)), tmp_path / "base.onnx", tmp_path / "merged.onnx")
    onnx.checker.check_model(str(tmp_path / "merged.onnx"), full_check=True)
    expected = X.numpy() @ (W.T + change(target)) @ W.T
    assert relative_error(run_onnx(tmp_path / "merged.onnx", {"x": X}), expected) < 1e-5


def test_the_value_of_a_constant_node_is_changed(tmp_path: Path) -> None:
    """A weight that an exporter wrote as a Constant is a weight, in a branch as well."""
    constant = onnx.numpy_helper.from_array(W, "value")
    inner = onnx.numpy_helper.from_array(W.T.copy(), "value")
    branches = [
        helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 8])])
        for name, nodes in (
            (
                "then",
                [
                    helper.make_node("Constant", [], ["inner.weight"], value=inner),
                    helper.make_node("MatMul", ["h", "inner.weight"], ["then_y"], name="/inner/MatMul"),
                ],
            ),
            ("else", [helper.make_node("Identity", ["h"], ["else_y"])]),
        )
    ]
    nodes = [
        helper.make_node("Constant", [], ["fc.weight"], value=constant),
        helper.make_node("MatMul", ["x", "fc.weight"], ["h"], name="/fc/MatMul"),
        helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]),
    ]
    first, second = linear_adapter("fc.weight", (8, 8)), linear_adapter("inner.weight", (8, 8))
    merged = merge(tmp_path, nodes, {"yes": np.array(True)}, first, second)
    expected = X.numpy() @ (W + change(first)) @ (W.T + change(second))
    assert relative_error(run_onnx(merged, {"x": X}), expected) < 1e-5


def test_the_manifest_stays_true_after_a_copy(tmp_path: Path) -> None:
    """The note names the copy for the target, and still the original for the other name."""
    nodes = [
        helper.make_node("Gather", ["lm_head.weight", "ids"], ["h"], name="gather"),
        helper.make_node("Transpose", ["lm_head.weight"], ["t"], name="transpose"),
        helper.make_node("MatMul", ["h", "t"], ["z"], name="head"),
        helper.make_node("Add", ["z", "x"], ["y"], name="add"),
    ]
    graph(nodes, {"lm_head.weight": W, "ids": np.array([0, 2, 5])}, inputs={"x": [3, 8]}, path=tmp_path / "base.onnx")
    proto = onnx.load(tmp_path / "base.onnx")
    places = {"lm_head.weight": Place("lm_head.weight"), "model.embed_tokens.weight": Place("lm_head.weight")}
    proto.metadata_props.add(key=KEY, value=Manifest(tensors=places).encode())
    onnx.save(proto, tmp_path / "base.onnx")
    factors = {"A": tensor_of(torch.randn(2, 8)), "B": tensor_of(torch.randn(8, 2))}
    embedding = Target(
        name="model.embed_tokens.weight", kind=Kind.EMBEDDING, layout=("in", "out"), shape=(8, 8), tensors=factors
    )

    merge_onnx(Adapter(targets=(embedding,)), tmp_path / "base.onnx", tmp_path / "merged.onnx")
    model = OnnxModel.open(tmp_path / "merged.onnx")
    manifest = Manifest.of(model.ir.metadata_props)
    assert manifest is not None
    assert manifest.tensors["lm_head.weight"].initializer == "lm_head.weight"
    copy = manifest.tensors["model.embed_tokens.weight"].initializer
    np.testing.assert_array_equal(model.array("lm_head.weight"), W)
    np.testing.assert_allclose(model.array(copy), W + delta(embedding), rtol=1e-6)


@pytest.mark.parametrize("exporter", ["raw", "optimized", "torchscript"])
def test_adapters_merge_one_after_the_other(exporter: str, exports: Exports, tmp_path: Path) -> None:
    """The output is a base for the next merge: both changes are there, and both adapters are named."""
    name = "model.layers.0.self_attn.q_proj.weight"
    first, head = linear_adapter(name, (64, 48)), linear_adapter("lm_head.weight", (99, 48))
    second = replace(first, scale=-0.25)
    for number, (targets, base) in enumerate(
        (((first, head), exports("llama-tied", exporter)), ((second, head), tmp_path / "0.onnx"))
    ):
        merge_onnx(Adapter(targets=targets), base, tmp_path / f"{number}.onnx")
    assert len(OnnxModel.open(tmp_path / "1.onnx").ir.metadata_props[ADAPTER_KEY].split()) == 2

    model, inputs = tiny_models.llama(tied=True), tiny_models.inputs(tiny_models.llama(tied=True), seed=3)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 2 * torch.from_numpy(delta(head)))
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight += torch.from_numpy(delta(first) + delta(second))
    assert relative_error(run_onnx(tmp_path / "1.onnx", inputs), run_torch(model, inputs)) < 1e-5
