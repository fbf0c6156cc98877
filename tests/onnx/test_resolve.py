"""Which initializer holds a target's tensor: the rules, their agreement, and every refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models
import torch
from onnx import helper
from onnx_models import export, graph, linear_adapter, tensor_of
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from safetensors.torch import save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import ConflictError, InconclusiveError, InvalidInputError, UnsupportedError
from lora_registry.merge.bases.base import open_base
from lora_registry.onnx.manifest import KEY, Manifest, Place
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.resolution import Resolution
from lora_registry.onnx.resolve import resolve

Exports = Callable[[str, str], Path]

RANDOM = np.random.default_rng(3)
SQUARE = RANDOM.standard_normal((8, 8)).astype(np.float32)
OTHER = RANDOM.standard_normal((8, 8)).astype(np.float32)
WIDE = RANDOM.standard_normal((8, 12)).astype(np.float32)


def opened(tmp_path: Path, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], **options: object) -> OnnxModel:
    """A hand-made graph with the input ``x``, saved and opened."""
    inputs = options.pop("inputs", {"x": ["n", 8]})
    graph(nodes, weights, inputs=inputs, path=tmp_path / "model.onnx", **options)
    return OnnxModel.open(tmp_path / "model.onnx")


def only(model: OnnxModel, target: Target, **options: object) -> Resolution:
    """The resolution of the one target."""
    (resolution,) = resolve(model, [target], **options)
    return resolution


def full(name: str, shape: tuple[int, ...]) -> Target:
    """A full replacement by zeros."""
    return Target(name=name, kind=Kind.FULL, layout=(), shape=shape, tensors={"value": tensor_of(torch.zeros(shape))})


def rules_of(error: pytest.ExceptionInfo[InvalidInputError]) -> set[str]:
    """Ids of the findings that an error carries."""
    return {finding.rule for finding in error.value.findings}


def with_manifest(path: Path, tensors: dict[str, Place]) -> OnnxModel:
    """The model at ``path`` with loreg's note."""
    proto = onnx.load(path)
    proto.metadata_props.add(key=KEY, value=Manifest(tensors=tensors).encode())
    onnx.save(proto, path)
    return OnnxModel.open(path)


# -- orientation comes from the operator ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "layout", "transposed"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], ("out", "in"), True),
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], ("in", "out"), False),
        ([helper.make_node("Gemm", ["x", "w"], ["y"])], ("out", "in"), True),
        ([helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)], ("out", "in"), False),
        ([helper.make_node("MatMul", ["w", "x"], ["y"])], ("out", "in"), False),
        ([helper.make_node("Gemm", ["w", "x"], ["y"], transA=1)], ("out", "in"), True),
        (
            [helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["x", "t"], ["y"])],
            ("out", "in"),
            False,
        ),
        (
            [
                helper.make_node("Identity", ["w"], ["i"]),
                helper.make_node("Transpose", ["i"], ["t"]),
                helper.make_node("Cast", ["t"], ["c"], to=1),
                helper.make_node("Gemm", ["x", "c"], ["y"], transB=1),
            ],
            ("out", "in"),
            True,
        ),
        ([helper.make_node("Einsum", ["x", "w"], ["y"], equation="ni,oi->no")], ("out", "in"), False),
        ([helper.make_node("Einsum", ["x", "w"], ["y"], equation="ni,io->no")], ("out", "in"), True),
        ([helper.make_node("FusedMatMul", ["x", "w"], ["y"], transB=1, domain="com.microsoft")], ("out", "in"), False),
    ],
)
def test_orientation_is_read_from_the_operator(
    tmp_path: Path, nodes: list[onnx.NodeProto], layout: tuple[str, str], transposed: bool
) -> None:
    """A square matrix fits both ways by its shape; the operator tells which one it is."""
    model = opened(tmp_path, nodes, {"w": SQUARE}, inputs={"x": [8, 8]})
    resolution = only(model, linear_adapter("w", (8, 8), layout=layout))
    assert [carrier.transposed for carrier in resolution.carriers] == [transposed]


@pytest.mark.parametrize(
    ("nodes", "layout", "transposed"),
    [
        ([helper.make_node("MatMul", ["x", "w"], ["y"])], ("expert", "out", "in"), True),
        ([helper.make_node("Einsum", ["x", "w"], ["y"], equation="eti,eoi->eto")], ("expert", "out", "in"), False),
        (
            [
                helper.make_node("Gather", ["w", "which"], ["one"], axis=0),
                helper.make_node("Transpose", ["one"], ["t"], perm=[1, 0]),
                helper.make_node("MatMul", ["x", "t"], ["y"]),
            ],
            ("expert", "out", "in"),
            False,
        ),
    ],
)
def test_orientation_of_stacked_experts(
    tmp_path: Path, nodes: list[onnx.NodeProto], layout: tuple[str, ...], transposed: bool
) -> None:
    """Batched products, Einsum, and the choice of one expert by Gather."""
    weights = {"w": RANDOM.standard_normal((4, 8, 8)).astype(np.float32), "which": np.array(2)}
    model = opened(tmp_path, nodes, weights, inputs={"x": [4, 5, 8]})
    factors = {"A": tensor_of(torch.zeros(4, 2, 8)), "B": tensor_of(torch.zeros(4, 8, 2))}
    target = Target(name="w", kind=Kind.EXPERTS, layout=layout, shape=(4, 8, 8), tensors=factors)
    assert only(model, target).carriers[0].transposed is transposed


def test_an_operator_that_contradicts_the_shape_is_refused(tmp_path: Path) -> None:
    """A Conv1D matrix whose adapter says (out, in) has the wrong shape once the operator has spoken."""
    model = opened(tmp_path, [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": WIDE})
    with pytest.raises(InvalidInputError) as refusal:
        resolve(model, [linear_adapter("w", (8, 12), layout=("out", "in"))])
    assert rules_of(refusal) == {"O-005"}


def test_a_use_that_is_no_product_is_refused_by_name(tmp_path: Path) -> None:
    """An adapter of a matrix cannot change what a ConvTranspose or a Reshape reads."""
    nodes = [
        helper.make_node("Reshape", ["m.weight", "shape"], ["flat"], name="/m/Reshape"),
        helper.make_node("MatMul", ["x", "flat"], ["y"], name="/m/MatMul"),
    ]
    model = opened(tmp_path, nodes, {"m.weight": SQUARE, "shape": np.array([8, 8])})
    with pytest.raises(UnsupportedError, match="Reshape") as refusal:
        resolve(model, [linear_adapter("m.weight", (8, 8))])
    assert rules_of(refusal) == {"O-004"}


# -- names and prefixes ---------------------------------------------------------------------------------------


def test_rules_that_fire_are_told(exports: Exports) -> None:
    """The evidence names rules, initializers and operators."""
    model = OnnxModel.open(exports("bert-sequence", "optimized"))
    target = linear_adapter("bert.encoder.layer.0.attention.self.query.weight", (48, 48))
    evidence = only(model, target).evidence()
    assert evidence["rules"] == ["folded-from", "node-scope"]
    assert evidence["initializers"][0]["transposed"] is True
    assert evidence["initializers"][0]["sites"][0]["operator"] == "MatMul input 1"


def test_one_prefix_is_dropped_from_all_names(tmp_path: Path) -> None:
    """An adapter of a classifier fits the export of the bare encoder."""
    model = opened(
        tmp_path, [helper.make_node("MatMul", ["x", "encoder.q.weight"], ["y"])], {"encoder.q.weight": SQUARE}
    )
    (carrier,) = only(model, linear_adapter("bert.encoder.q.weight", (8, 8))).carriers
    assert carrier.value.name == "encoder.q.weight"


def test_two_prefixes_that_fit_equally_well_are_inconclusive(tmp_path: Path) -> None:
    """An encoder and a decoder with the same inner names."""
    nodes = [
        helper.make_node("MatMul", ["x", "enc.q.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "dec.q.weight"], ["y"]),
    ]
    model = opened(tmp_path, nodes, {"enc.q.weight": SQUARE, "dec.q.weight": OTHER})
    with pytest.raises(InconclusiveError, match=r"\+dec\., \+enc\."):
        resolve(model, [linear_adapter("q.weight", (8, 8))])


def test_all_targets_that_are_missing_are_listed(exports: Exports) -> None:
    """The error carries one finding for each, not only the first."""
    model = OnnxModel.open(exports("bert-sequence", "raw"))
    targets = [linear_adapter(f"bert.nothing.{index}.weight", (8, 8)) for index in range(3)]
    with pytest.raises(InvalidInputError, match="3 of 3 targets") as refusal:
        resolve(model, targets)
    assert [finding.place for finding in refusal.value.findings] == [target.name for target in targets]


def test_the_manifest_is_enough(tmp_path: Path) -> None:
    """Without any other note, loreg's own says where a tensor is."""
    model = opened(tmp_path, [helper.make_node("MatMul", ["x", "val_7"], ["y"])], {"val_7": SQUARE})
    with pytest.raises(InvalidInputError):
        resolve(model, [linear_adapter("q.weight", (8, 8))])
    model = with_manifest(tmp_path / "model.onnx", {"q.weight": Place("val_7", transposed=True)})
    resolution = only(model, linear_adapter("q.weight", (8, 8)))
    assert resolution.rules == ("manifest",)


def test_a_manifest_that_contradicts_the_operator_is_refused(tmp_path: Path) -> None:
    """The note says that the matrix is stored as in the checkpoint; the operator says transposed."""
    opened(tmp_path, [helper.make_node("MatMul", ["x", "val_7"], ["y"])], {"val_7": SQUARE})
    model = with_manifest(tmp_path / "model.onnx", {"q.weight": Place("val_7", transposed=False)})
    with pytest.raises(InvalidInputError) as refusal:
        resolve(model, [linear_adapter("q.weight", (8, 8))])
    assert rules_of(refusal) == {"O-002"}


def test_rules_that_point_at_different_values_are_refused(tmp_path: Path) -> None:
    """The manifest names one matrix, the scope of the operator another."""
    nodes = [
        helper.make_node("MatMul", ["x", "val_1"], ["h"], name="/q/MatMul"),
        helper.make_node("MatMul", ["h", "val_2"], ["y"], name="/q/MatMul_1"),
    ]
    opened(tmp_path, nodes[:1] + nodes[1:], {"val_1": SQUARE, "val_2": OTHER})
    model = with_manifest(tmp_path / "model.onnx", {"q.weight": Place("gone", transposed=True)})
    with pytest.raises(InvalidInputError, match="do not agree") as refusal:
        resolve(model, [linear_adapter("q.weight", (8, 8))])
    assert rules_of(refusal) == {"O-002"}


def test_several_uses_without_a_note_are_refused(tmp_path: Path) -> None:
    """Two products read the matrix; it may belong to two modules that happened to be equal."""
    nodes = [helper.make_node("MatMul", ["x", "q.weight"], ["h"]), helper.make_node("MatMul", ["h", "q.weight"], ["y"])]
    model = opened(tmp_path, nodes, {"q.weight": SQUARE})
    target = linear_adapter("q.weight", (8, 8), layout=("in", "out"))
    with pytest.raises(InvalidInputError) as refusal:
        resolve(model, [target])
    assert rules_of(refusal) == {"O-006"}
    model = with_manifest(tmp_path / "model.onnx", {"q.weight": Place("q.weight")})
    assert len(only(model, target).carriers[0].sites) == 2


def test_a_square_replacement_of_a_renamed_matrix_needs_the_base(tmp_path: Path) -> None:
    """Nothing says whether the exporter transposed it; the base checkpoint does."""
    model = opened(tmp_path, [helper.make_node("MatMul", ["x", "val_1"], ["y"], name="/q/MatMul")], {"val_1": SQUARE})
    with pytest.raises(UnsupportedError, match="square") as refusal:
        resolve(model, [full("q.weight", (8, 8))])
    assert rules_of(refusal) == {"O-004"}
    save_file({"q.weight": torch.from_numpy(SQUARE.T.copy())}, tmp_path / "base.safetensors")
    resolution = only(model, full("q.weight", (8, 8)), base=open_base(tmp_path / "base.safetensors"))
    assert resolution.carriers[0].transposed is True


# -- values ---------------------------------------------------------------------------------------------------


def anonymous(path: Path, out: Path, *, half: bool = False) -> OnnxModel:
    """A copy of a model without any note: no scopes, no metadata, initializers and nodes renamed."""
    proto = onnx.load(path)
    names = {tensor.name: f"t{index}" for index, tensor in enumerate(proto.graph.initializer)}
    for index, node in enumerate(proto.graph.node):
        del node.metadata_props[:]
        node.name = f"n{index}"
        node.input[:] = [names.get(name, name) for name in node.input]
    for tensor in proto.graph.initializer:
        tensor.name = names[tensor.name]
        if half and tensor.data_type == onnx.TensorProto.FLOAT:
            narrow = onnx.numpy_helper.to_array(tensor).clip(-6e4, 6e4).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(narrow, tensor.name))
    del proto.graph.value_info[:]
    onnx.save(proto, out)
    return OnnxModel.open(out)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("exporter", ["raw", "optimized", "torchscript"])
def test_values_of_the_base_find_what_names_do_not(
    exporter: str, half: bool, exports: Exports, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every matrix of a GPT-2 is found by its numbers alone, as stored, transposed, and rounded to half."""
    model = anonymous(exports("gpt2", exporter), tmp_path / "anonymous.onnx", half=half)
    base = open_base(tiny_dir("gpt2"))
    targets = [
        linear_adapter(
            f"transformer.h.{layer}.{module}.weight",
            base.shape(f"transformer.h.{layer}.{module}.weight"),
            layout=("in", "out"),
        )
        for layer in (0, 1)
        for module in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    with pytest.raises(InvalidInputError, match="the base checkpoint would let it be found"):
        resolve(model, targets)
    assert {resolution.rules for resolution in resolve(model, targets, base=base)} == {("value-match",)}


def test_the_base_confirms_names(exports: Exports, tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """With the checkpoint at hand, a name counts only if the values are those of the checkpoint."""
    model = OnnxModel.open(exports("llama-untied", "optimized"))
    target = linear_adapter("model.layers.0.self_attn.q_proj.weight", (64, 48))
    confirmed = only(model, target, base=open_base(tiny_dir("llama-untied")))
    assert confirmed.rules == ("folded-from", "node-scope", "value-match")
    tiny_models.save(tiny_models.llama(tied=False, seed=1), tmp_path / "other")
    with pytest.raises(InvalidInputError) as refusal:
        resolve(model, [target], base=open_base(tmp_path / "other"))
    assert rules_of(refusal) == {"O-009"}


class Twins(torch.nn.Module):
    """Two layers with equal weights on the same input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = torch.nn.Linear(6, 6, bias=False)
        self.b = torch.nn.Linear(6, 6, bias=False)
        self.b.weight.data.copy_(self.a.weight.data)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) * torch.relu(self.b(x))


def test_layers_that_an_optimizer_made_one_are_refused(tmp_path: Path) -> None:
    """torch's optimizer merges equal layers on equal inputs; the base checkpoint shows that one is gone."""
    twins = Twins().eval()
    torch.onnx.export(twins, (torch.randn(2, 3, 6),), str(tmp_path / "twins.onnx"), dynamo=True, verbose=False)
    save_file(twins.state_dict(), tmp_path / "base.safetensors")
    model = OnnxModel.open(tmp_path / "twins.onnx")
    assert sum(node.op_type == "MatMul" for node in model.ir.graph) == 1
    with pytest.raises(InvalidInputError, match="an optimizer made one of the two") as refusal:
        resolve(model, [linear_adapter("a.weight", (6, 6))], base=open_base(tmp_path / "base.safetensors"))
    assert rules_of(refusal) == {"O-006"}
    with pytest.raises(InvalidInputError):
        resolve(model, [linear_adapter("b.weight", (6, 6))])


# -- what is refused by name ----------------------------------------------------------------------------------


def test_a_weight_that_was_computed_into_a_constant_is_refused(exports: Exports) -> None:
    """With fixed shapes, the optimizer looks up the position embeddings itself; the table is gone."""
    model = OnnxModel.open(exports("bert-sequence", "optimized"))
    factors = {"A": tensor_of(torch.zeros(2, 40)), "B": tensor_of(torch.zeros(48, 2))}
    name = "bert.embeddings.position_embeddings.weight"
    target = Target(name=name, kind=Kind.EMBEDDING, layout=("in", "out"), shape=(40, 48), tensors=factors)
    with pytest.raises(UnsupportedError, match="folded it with other tensors into") as refusal:
        resolve(model, [target])
    assert rules_of(refusal) == {"O-008"}


class Normalized(torch.nn.Module):
    """Convolutions with BatchNorms behind them, which exporters like to fold."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = torch.nn.Conv2d(3, 4, 3, bias=False), torch.nn.BatchNorm2d(4)
        self.norm.running_var.uniform_(0.5, 2.0)
        self.norm.weight.data.uniform_(0.5, 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("options", [{"dynamo": True}, {"dynamo": False}])
def test_a_kernel_with_a_batch_norm_folded_in_is_refused(options: dict[str, bool], tmp_path: Path) -> None:
    """The kernel keeps its name or its module, but not its values; a change would be scaled wrongly."""
    factors = {"A": tensor_of(torch.zeros(2, 3, 3, 3)), "B": tensor_of(torch.zeros(4, 2, 1, 1))}
    layout = ("out", "in", "k", "k")
    target = Target(name="conv.weight", kind=Kind.CONV, layout=layout, shape=(4, 3, 3, 3), tensors=factors)
    module, x = Normalized().eval(), torch.randn(1, 3, 6, 6)
    torch.onnx.export(module, (x,), str(tmp_path / "folded.onnx"), verbose=False, **options)
    with pytest.raises(UnsupportedError, match="export without optimizing") as refusal:
        resolve(OnnxModel.open(tmp_path / "folded.onnx"), [target])
    assert rules_of(refusal) == {"O-008"}
    torch.onnx.export(module, (x,), str(tmp_path / "plain.onnx"), verbose=False, dynamo=True, optimize=False)
    assert only(OnnxModel.open(tmp_path / "plain.onnx"), target).rules == ("initializer", "node-scope")


@pytest.mark.parametrize("method", ["int8", "int4", "qdq4"])
def test_quantized_weights_are_refused_by_name(method: str, exports: Exports, tmp_path: Path) -> None:
    """onnxruntime's dynamic int8, MatMulNBits, and 4-bit QDQ."""
    base, path = exports("llama-untied", "raw"), tmp_path / "quantized.onnx"
    if method == "int8":
        quantize_dynamic(export_with_matmul_weights(base, tmp_path), path, weight_type=QuantType.QInt8)
    else:
        form = onnxruntime_format(method)
        quantizer = MatMulNBitsQuantizer(
            onnx.load(export_with_matmul_weights(base, tmp_path)), block_size=16, quant_format=form
        )
        quantizer.process()
        quantizer.model.save_model_to_file(str(path))
    with pytest.raises(UnsupportedError, match="quantized") as refusal:
        resolve(OnnxModel.open(path), [linear_adapter("model.layers.0.self_attn.q_proj.weight", (64, 48))])
    assert rules_of(refusal) == {"O-003"}


def export_with_matmul_weights(path: Path, folder: Path) -> Path:
    """The model with every Transpose of a weight carried out, its name kept, as quantizers want it."""
    proto = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in [node for node in proto.graph.node if node.op_type == "Transpose" and node.input[0] in tensors]:
        tensor = tensors[node.input[0]]
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).T.copy(), tensor.name))
        for user in proto.graph.node:
            user.input[:] = [node.input[0] if name == node.output[0] else name for name in user.input]
        proto.graph.node.remove(node)
    del proto.graph.value_info[:]
    onnx.save(proto, folder / "plain.onnx")
    return folder / "plain.onnx"


def onnxruntime_format(method: str) -> object:
    """The quantizer's name for operators of its own, or for DequantizeLinear."""
    from onnxruntime.quantization.quant_utils import QuantFormat

    return QuantFormat.QOperator if method == "int4" else QuantFormat.QDQ


def test_a_tie_is_refused_where_that_is_asked(exports: Exports) -> None:
    """tied="error" stops at a tensor with two roles, in one initializer or in two copies."""
    factors = {"A": tensor_of(torch.zeros(2, 99)), "B": tensor_of(torch.zeros(48, 2))}
    target = Target(
        name="model.embed_tokens.weight", kind=Kind.EMBEDDING, layout=("in", "out"), shape=(99, 48), tensors=factors
    )
    for exporter in ("raw", "optimized", "torchscript"):
        model = OnnxModel.open(exports("llama-tied", exporter))
        with pytest.raises(ConflictError, match="O-007"):
            resolve(model, [target], tied="error")
        assert only(OnnxModel.open(exports("llama-untied", exporter)), target, tied="error").tied is False


def test_a_row_beyond_the_table_is_refused(tmp_path: Path) -> None:
    """A tokens target names rows of the base; one that is not there is an error."""
    nodes = [helper.make_node("Gather", ["emb.weight", "ids"], ["y"], name="/emb/Gather")]
    model = opened(tmp_path, nodes, {"emb.weight": WIDE, "ids": np.array([1])}, inputs={"x": [1]})
    target = Target(
        name="emb.weight",
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=None,
        tensors={"value": tensor_of(torch.zeros(2, 12))},
        rows=(3, 8),
    )
    with pytest.raises(InvalidInputError, match="has 8 rows") as refusal:
        resolve(model, [target])
    assert rules_of(refusal) == {"O-005"}
    assert only(model, replace(target, rows=(3, 7))).rules == ("initializer", "node-scope")


def test_exporting_again_gives_the_same_answer(exports: Exports, tmp_path: Path) -> None:
    """Resolution does not depend on the numbering of the exporter's anonymous values."""
    again = export(tiny_models.MODELS["llama-untied"](), "optimized", tmp_path / "again.onnx")
    target = linear_adapter("model.layers.1.mlp.down_proj.weight", (48, 80))
    for path in (again, exports("llama-untied", "optimized")):
        assert len(Adapter(targets=(only(OnnxModel.open(path), target).target,))) == 1


@pytest.mark.parametrize("exporter", ["optimized", "torchscript"])
def test_a_table_that_only_another_module_looks_up_is_refused(exporter: str, tmp_path: Path) -> None:
    """T5 keeps its table as ``shared`` and reads it as ``encoder.embed_tokens``: each for itself."""
    path = export(tiny_models.t5_encoder(), exporter, tmp_path / "t5.onnx")
    shape = (97, 48)
    factors = {"A": tensor_of(torch.randn(2, 97)), "B": tensor_of(torch.randn(48, 2))}
    target = Target(name="shared.weight", kind=Kind.EMBEDDING, layout=("in", "out"), shape=shape, tensors=factors)
    with pytest.raises((ConflictError, InvalidInputError), match=r"tied|O-001"):
        resolve(OnnxModel.open(path), [target])
    own = replace(target, name="encoder.embed_tokens.weight")
    assert len(resolve(OnnxModel.open(path), [own])) == 1
