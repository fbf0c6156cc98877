"""A switchable model is its base while no adapter is on, and base + adapter while one is; whatever exported it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import peft_adapters
import pytest
import switchable_models as switchable
import tiny_models
from onnx import TensorProto, helper, numpy_helper
from peft import LoraConfig
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, InvalidInputError, NotFoundError, UnsupportedError, UsageError
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.slots.factors import factors_for
from lora_registry.onnx.slots.insert import add_slots, slots_of
from lora_registry.onnx.slots.manifest import IDS, SCALE
from lora_registry.onnx.slots.stack import stacked
from lora_registry.runtime.ort import run

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((6, 4)).astype(np.float32)
LINEAR = switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (6, 4))

JOBS = {
    ("llama-tied", "optimized"): ["q_proj", "down_proj", "embed_tokens"],
    ("gpt2", "torchscript"): ["c_attn", "wte"],
    ("bert", "raw"): ["query", "intermediate.dense", "word_embeddings"],
    ("deberta-sequence", "optimized"): ["query_proj", "key_proj", "dense"],
    ("cnn", "raw"): ["stem", "along", "head"],
}


def product(path: Path, *, node: onnx.NodeProto | None = None, external: bool = False, **weights: np.ndarray) -> Path:
    """x (rows, 6) through one operator, MatMul if no other is given, to y; the weight is called layer.weight."""
    node = node or helper.make_node("MatMul", ["x", "layer.weight"], ["y"], name="op")
    held = {"layer.weight": weights.pop("weight", W), **weights}
    onnx_models.graph([node], held, inputs={"x": ("rows", 6)}, path=path, external=external)
    return path


def difference(base: Path, made: Path, adapter: Adapter, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What an adapter adds to the first output."""
    arrays = factors_for(slots_of(made), adapter).arrays
    one, other = switchable.open_cpu(base), switchable.open_cpu(made)
    return other.run(None, {**inputs, **arrays})[0].astype(np.float64) - one.run(None, inputs)[0]


@pytest.mark.parametrize(("family", "exporter"), JOBS, ids=[" ".join(job) for job in JOBS])
def test_exported_models_are_the_base_and_base_plus_adapter(
    exports: Callable[[str, str], Path], tmp_path: Path, family: str, exporter: str
) -> None:
    """W-002: with nothing active the bits are the base's; with PEFT's adapter the outputs are PEFT's; the checker
    passes."""
    base, model = exports(family, exporter), tiny_models.MODELS[family]()
    options = LoraConfig(r=4, lora_alpha=8, target_modules=JOBS[family, exporter], rank_pattern={"dense": 3})
    wrapped = peft_adapters.make_peft_adapter(model, options, tmp_path / "peft")
    adapter = onnx_models.adapter_of(wrapped)
    inputs = tiny_models.inputs(model)
    made = tmp_path / "switchable.onnx"
    result = add_slots(base, made, adapters=[adapter])
    assert set(result.manifest.slots) == {target.name for target in adapter}
    onnx.checker.check_model(str(made), full_check=True)
    session = switchable.open_cpu(made)
    fed = {name: value.numpy() for name, value in inputs.items()}
    plain = switchable.open_cpu(base).run(None, fed)
    if family == "deberta-sequence":  # projects its relative positions, which no input changes
        assert result.variable
        assert switchable.relative(session.run(None, fed)[0], plain[0]) < 1e-5
    else:
        assert result.variable == ()
        assert switchable.same_bits(session.run(None, fed), plain)
    arrays = factors_for(result.manifest, adapter).arrays
    wanted = onnx_models.run_torch(wrapped, inputs)
    assert switchable.relative(session.run(None, {**fed, **arrays})[0], wanted) < 1e-5
    assert switchable.relative(session.run(None, fed)[0], wanted) > 1e-3


def test_inputs_have_values_by_themselves(tmp_path: Path) -> None:
    """W-001: both inputs of a slot are graph inputs and initializers without ranks, which a run need not give."""
    base, made = product(tmp_path / "base.onnx"), tmp_path / "made.onnx"
    add_slots(base, made, adapters=[Adapter(targets=(LINEAR,))])
    session = switchable.open_cpu(made)
    assert [value.name for value in session.get_inputs()] == ["x"]
    found = {value.name: value.shape for value in session.get_overridable_initializers()}
    rank = "layer.weight/rank"
    assert found == {"layer.weight/A": [6, rank], "layer.weight/B": [rank, 4], SCALE: []}
    held = {tensor.name: list(tensor.dims) for tensor in onnx.load(made).graph.initializer}
    assert (held["layer.weight/A"], held["layer.weight/B"]) == ([6, 0], [0, 4])


def test_minus_zero_stays(tmp_path: Path) -> None:
    """W-002: the bits of −0 are the base's too, which adding zeros would change."""
    minus = tmp_path / "minus.onnx"
    gather = helper.make_node("Gather", ["layer.weight", "ids"], ["y"], name="op")
    table = np.array([[-0.0, 1], [2, -0.0]], np.float32)
    proto = onnx_models.graph([gather], {"layer.weight": table}, inputs={"ids": ("rows",)})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    onnx.save(proto, minus)
    target = switchable.low_rank("layer.weight", Kind.EMBEDDING, ("in", "out"), (2, 2))
    add_slots(minus, tmp_path / "made.onnx", adapters=[Adapter(targets=(target,))])
    (rows,) = switchable.open_cpu(tmp_path / "made.onnx").run(None, {"ids": np.array([0, 1])})
    assert rows.tobytes() == table.tobytes()


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(tmp_path: Path, transposed: int) -> None:
    """Gemm with either transB and a bias gets the change that its matrix would get."""
    node = helper.make_node("Gemm", ["x", "layer.weight", "bias"], ["y"], name="op", transB=transposed)
    held = W.T.copy() if transposed else W
    base = product(tmp_path / "base.onnx", node=node, weight=held, bias=np.arange(4, dtype=np.float32))
    target = LINEAR if not transposed else replace(LINEAR, layout=("out", "in"), shape=(4, 6))
    made = tmp_path / "made.onnx"
    add_slots(base, made, adapters=[Adapter(targets=(target,))])
    x = RANDOM.standard_normal((3, 6)).astype(np.float32)
    found = difference(base, made, Adapter(targets=(target,)), {"x": x})
    np.testing.assert_allclose(found, x @ switchable.change(target).T, rtol=1e-4, atol=1e-5)


def test_scale_input(tmp_path: Path) -> None:
    """W-003: one number multiplies the change of the whole run; 0 gives the base."""
    base, made = product(tmp_path / "base.onnx"), tmp_path / "made.onnx"
    add_slots(base, made, adapters=[Adapter(targets=(LINEAR,))])
    arrays = factors_for(slots_of(made), Adapter(targets=(LINEAR,))).arrays
    x = RANDOM.standard_normal((3, 6)).astype(np.float32)
    session = switchable.open_cpu(made)
    outputs = [
        session.run(None, {"x": x, **arrays, SCALE: np.array(scale, np.float32)})[0] for scale in (0.0, 1.0, 2.0)
    ]
    np.testing.assert_allclose(outputs[2] - outputs[0], 2 * (outputs[1] - outputs[0]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(outputs[0], switchable.open_cpu(base).run(None, {"x": x})[0])


def test_each_slot_has_its_own_rank(tmp_path: Path) -> None:
    """W-004: slots of one run have ranks of their own, and one can be left empty."""
    nodes = [
        helper.make_node("MatMul", ["x", "one.weight"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "two.weight"], ["y"], name="second"),
    ]
    weights = {"one.weight": W, "two.weight": W.T.copy()}
    base, made = tmp_path / "base.onnx", tmp_path / "made.onnx"
    onnx_models.graph(nodes, weights, inputs={"x": ("rows", 6)}, path=base)
    one = switchable.low_rank("one.weight", Kind.LINEAR, ("in", "out"), (6, 4), rank=2)
    two = switchable.low_rank("two.weight", Kind.LINEAR, ("in", "out"), (4, 6), rank=7)
    add_slots(base, made, patterns=["*.weight"])
    x = RANDOM.standard_normal((3, 6)).astype(np.float32)
    w1, w2 = W + switchable.change(one).T, W.T + switchable.change(two).T
    for targets, wanted in (((one, two), x @ w1 @ w2), ((two,), x @ W @ w2), ((one,), x @ w1 @ W.T)):
        arrays = factors_for(slots_of(made), Adapter(targets=targets)).arrays
        (y,) = switchable.open_cpu(made).run(None, {"x": x, **arrays})
        np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_only_the_uses_of_the_target_get_a_branch(tmp_path: Path) -> None:
    """A table that is read as rows and as the matrix of the head gets a slot at the use that the adapter changes."""
    nodes = [
        helper.make_node("Gather", ["table.weight", "ids"], ["e"], name="rows"),
        helper.make_node("Transpose", ["table.weight"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"], name="head"),
    ]
    table = RANDOM.standard_normal((9, 5)).astype(np.float32)
    proto = onnx_models.graph(nodes, {"table.weight": table}, inputs={"ids": ("rows",)})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    base, made = tmp_path / "base.onnx", tmp_path / "made.onnx"
    onnx.save(proto, base)
    target = switchable.low_rank("table.weight", Kind.EMBEDDING, ("in", "out"), (9, 5))
    result = add_slots(base, made, adapters=[Adapter(targets=(target,))])
    assert result.manifest.slots["table.weight"].nodes == ("rows",)
    ids = np.array([1, 8, 3])
    arrays = factors_for(result.manifest, Adapter(targets=(target,))).arrays
    (y,) = switchable.open_cpu(made).run(None, {"ids": ids, **arrays})
    changed = table + switchable.change(target).T
    np.testing.assert_allclose(y, changed[ids] @ table.T, rtol=1e-4, atol=1e-4)


def test_a_weight_that_one_module_uses_twice(tmp_path: Path) -> None:
    """Every use that belongs to the target gets a branch, and all of them read the same two inputs."""
    scope = "pkg.torch.onnx.name_scopes"
    nodes = []
    for number in (1, 2):
        nodes.append(helper.make_node("MatMul", ["x", "layer.weight"], [f"y{number}"], name=f"call_{number}"))
        entry = nodes[-1].metadata_props.add()
        entry.key, entry.value = scope, str(["", "layer", "linear"])
    nodes[1].input[0] = "x2"
    nodes.append(helper.make_node("Sub", ["y1", "y2"], ["y"]))
    base, made = tmp_path / "base.onnx", tmp_path / "made.onnx"
    onnx_models.graph(nodes, {"layer.weight": W}, inputs={"x": ("rows", 6), "x2": ("rows", 6)}, path=base)
    add_slots(base, made, adapters=[Adapter(targets=(LINEAR,))])
    one, two = RANDOM.standard_normal((2, 3, 6)).astype(np.float32)
    found = difference(base, made, Adapter(targets=(LINEAR,)), {"x": one, "x2": two})
    np.testing.assert_allclose(found, (one - two) @ switchable.change(LINEAR).T, rtol=1e-4, atol=1e-4)


def test_inside_a_branch_of_the_graph(tmp_path: Path) -> None:
    """An operator in the body of an If reads the inputs of the main graph."""
    inner = helper.make_node("MatMul", ["x", "layer.weight"], ["inside"], name="op")
    output = helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["rows", 4])
    then = helper.make_graph([inner], "then", [], [output], [numpy_helper.from_array(W, "layer.weight")])
    zeros = helper.make_node("MatMul", ["x", "other"], ["inside_too"], name="else_op")
    output = helper.make_tensor_value_info("inside_too", TensorProto.FLOAT, ["rows", 4])
    other = helper.make_graph([zeros], "else", [], [output], [numpy_helper.from_array(0 * W, "other")])
    node = helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)
    base, made = tmp_path / "base.onnx", tmp_path / "made.onnx"
    onnx_models.graph([node], {"yes": np.array(True)}, inputs={"x": ("rows", 6)}, path=base)
    add_slots(base, made, adapters=[Adapter(targets=(LINEAR,))])
    onnx.checker.check_model(str(made))
    x = RANDOM.standard_normal((3, 6)).astype(np.float32)
    found = difference(base, made, Adapter(targets=(LINEAR,)), {"x": x})
    np.testing.assert_allclose(found, x @ switchable.change(LINEAR).T, rtol=1e-4, atol=1e-4)


def test_the_base_is_not_changed_and_its_data_are_copied_as_they_are(tmp_path: Path) -> None:
    """The data file of the copy is that of the base, byte for byte, and the base is what it was."""
    base, made = product(tmp_path / "base.onnx", external=True), tmp_path / "made.onnx"
    before = {path.name: Digest.of_file(path) for path in tmp_path.iterdir()}
    result = add_slots(base, made, adapters=[Adapter(targets=(LINEAR,))])
    assert {name: Digest.of_file(tmp_path / name) for name in before} == before
    assert result.files[1].digest == before["base.onnx.data"]
    x = RANDOM.standard_normal((3, 6)).astype(np.float32)
    assert switchable.same_bits(*(switchable.open_cpu(path).run(None, {"x": x}) for path in (base, made)))


def test_versions_are_kept(tmp_path: Path) -> None:
    """Opsets and IR version stay; one from before IR 4 is raised to it, since which inputs have values."""
    base, made = product(tmp_path / "base.onnx"), tmp_path / "made.onnx"
    add_slots(base, made, adapters=[Adapter(targets=(LINEAR,))])
    one, other = onnx.load(base), onnx.load(made)
    assert (one.ir_version, list(one.opset_import)) == (other.ir_version, list(other.opset_import))
    assert [value.name for value in one.graph.output] == [value.name for value in other.graph.output]


def test_slots_of_a_model_that_has_slots(tmp_path: Path) -> None:
    """Slots are made of a base, not of a switchable model; nor beside a value of the same name."""
    base, made = product(tmp_path / "base.onnx"), tmp_path / "made.onnx"
    adapter = Adapter(targets=(LINEAR,))
    add_slots(base, made, adapters=[adapter])
    with pytest.raises(ConflictError, match="has slots already"):
        add_slots(made, tmp_path / "again.onnx", adapters=[adapter])
    taken = product(tmp_path / "taken.onnx", **{"layer.weight/A": W})
    with pytest.raises(ConflictError, match=r"has a value 'layer\.weight/A' already"):
        add_slots(taken, tmp_path / "again.onnx", adapters=[adapter])
    assert not (tmp_path / "again.onnx").exists()
    with pytest.raises(UnsupportedError, match="has no slots"):
        slots_of(base)


def test_a_model_that_has_slots_is_no_base_of_a_merge(tmp_path: Path) -> None:
    """W-014: the slots state their base, so that a merge behind them would go on taking the adapters of that base."""
    base, made = product(tmp_path / "base.onnx"), tmp_path / "made.onnx"
    adapter = Adapter(targets=(LINEAR,))
    add_slots(base, made, adapters=[adapter])
    with pytest.raises(ConflictError, match="has slots; merge into its base"):
        merge_onnx(adapter, made, tmp_path / "merged.onnx")
    assert not (tmp_path / "merged.onnx").exists()


def refused(path: Path, *targets: Target) -> str:
    """The message with which slots for ``targets`` are refused; nothing is written."""
    out = path.with_name("refused.onnx")
    with pytest.raises((UnsupportedError, InvalidInputError)) as caught:
        add_slots(path, out, adapters=[Adapter(targets=targets)])
    assert not out.exists()
    return str(caught.value)


def test_what_no_slot_can_hold(tmp_path: Path) -> None:
    """Magnitudes, values, vectors and grouped convolutions are refused by name."""
    base = product(tmp_path / "base.onnx")
    one = Tensor("F32", (4,), np.ones(4, np.float32).tobytes())
    dora = replace(LINEAR, tensors={**LINEAR.tensors, "magnitude": one})
    assert "layer.weight: a magnitude (DoRA) has no slot" in refused(base, dora)
    bias = Target(name="layer.bias", kind=Kind.BIAS, layout=("out",), shape=(4,), tensors={"delta": one})
    assert "layer.bias: a bias target has no factors" in refused(base, bias)


@pytest.mark.parametrize(
    ("attributes", "said"),
    [({"transA": 1}, "transA"), ({"alpha": 2.0}, "alpha")],
    ids=["transA", "alpha"],
)
def test_operators_that_no_branch_follows(tmp_path: Path, attributes: dict[str, float], said: str) -> None:
    """An operator that does more with its input than the branch would is refused by name."""
    node = helper.make_node("Gemm", ["x", "layer.weight"], ["y"], name="op", **attributes)
    assert f"Gemm 'op' has {said}" in refused(product(tmp_path / "base.onnx", node=node), LINEAR)


def test_targets_that_are_not_there(tmp_path: Path) -> None:
    """A pattern that matches nothing, a target without a tensor, and no request at all are errors."""
    base, out = product(tmp_path / "base.onnx"), tmp_path / "made.onnx"
    with pytest.raises(NotFoundError, match=r"no tensor that could have a slot is called \*\.nothing"):
        add_slots(base, out, patterns=["*.nothing"])
    with pytest.raises(UsageError, match="say which tensors"):
        add_slots(base, out)
    elsewhere = replace(LINEAR, name="elsewhere.weight")
    assert "O-001 at elsewhere.weight" in refused(base, elsewhere)
    other = replace(LINEAR, layout=("out", "in"), shape=(4, 6))
    with pytest.raises(ConflictError, match="the adapters take it for"):
        add_slots(base, out, adapters=[Adapter(targets=(LINEAR,)), Adapter(targets=(other,))])


def test_a_checkpoint_finds_by_value_and_gives_true_fingerprints(
    exports: Callable[[str, str], Path], tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Where names are lost, patterns are over the checkpoint's names, and slots state the checkpoint's fingerprints."""
    proto = onnx.load(exports("llama-untied", "torchscript"))
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    base, made = tmp_path / "base.onnx", tmp_path / "made.onnx"
    onnx.save(proto, base)
    checkpoint = open_base(tiny_dir("llama-untied"))
    manifest = add_slots(base, made, patterns=["*.down_proj.weight"], base=checkpoint).manifest
    assert {slot.shape for slot in manifest.slots.values()} == {(48, 80)}
    assert {slot.layout for slot in manifest.slots.values()} == {("out", "in")}
    assert not any(slot.rounded for slot in manifest.slots.values())
    assert all(slot.fingerprint for slot in manifest.slots.values())


# Batched


def batched_product(path: Path, shape: tuple[int | str, ...] = ("batch", "sequence", 6)) -> Path:
    """x (batch, sequence, 6) through a MatMul with a bias."""
    nodes = [
        helper.make_node("MatMul", ["x", "layer.weight"], ["z"], name="op"),
        helper.make_node("Add", ["z", "layer.bias"], ["y"]),
    ]
    weights = {"layer.weight": W, "layer.bias": np.arange(4, dtype=np.float32)}
    onnx_models.graph(nodes, weights, inputs={"x": shape}, output_shape=(*shape[:-1], 4), path=path)
    return path


@pytest.mark.parametrize("shape", [("batch", "sequence", 6), ("batch", 6), ("batch", "one", "two", 6)])
def test_every_row_has_its_own_adapter(tmp_path: Path, shape: tuple[int | str, ...]) -> None:
    """W-011: row i of one run is what row i would be with its adapter alone, and number 0 is the base, bit for bit."""
    base, made = batched_product(tmp_path / "base.onnx", shape), tmp_path / "made.onnx"
    two = switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (6, 4), rank=5, seed=1)
    adapters = [Adapter(targets=(LINEAR,)), Adapter(targets=(two,))]
    result = add_slots(base, made, adapters=adapters, batched=True)
    onnx.checker.check_model(str(made), full_check=True)
    x = RANDOM.standard_normal([{"batch": 4, "sequence": 3}.get(str(axis), 2) for axis in shape[:-1]] + [6])
    inputs = {"x": x.astype(np.float32)}
    session, plain = switchable.open_cpu(made), switchable.open_cpu(base).run(None, inputs)
    assert switchable.same_bits(session.run(None, inputs), plain)
    stacks = stacked(result.manifest, adapters)
    (y,) = session.run(None, {**inputs, **stacks, IDS: np.array([2, 0, 1, 2])})
    for row, changed in enumerate([two, None, LINEAR, two]):
        wanted = plain[0][row] + (0 if changed is None else inputs["x"][row] @ switchable.change(changed).T)
        np.testing.assert_allclose(y[row], wanted, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(y[1], plain[0][1])
    (alike,) = session.run(None, {**inputs, **stacks, IDS: np.array([1])})
    np.testing.assert_allclose(alike, plain[0] + inputs["x"] @ switchable.change(LINEAR).T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("number", [-1, -2, 2])
def test_a_number_that_no_adapter_has_is_refused(tmp_path: Path, number: int) -> None:
    """W-011, W-013: below 0 as well as beyond the last; -1 is not the last adapter."""
    base, made = batched_product(tmp_path / "base.onnx"), tmp_path / "made.onnx"
    adapter = Adapter(targets=(LINEAR,))
    result = add_slots(base, made, adapters=[adapter], batched=True)
    feeds = {"x": np.ones((1, 3, 6), np.float32), **stacked(result.manifest, [adapter])}
    session = switchable.open_cpu(made)
    run(session, {**feeds, IDS: np.array([1])})
    with pytest.raises(InvalidInputError, match="out of data bounds"):
        run(session, {**feeds, IDS: np.array([number])})


def test_batched_embeddings(tmp_path: Path) -> None:
    """W-011: each row reads the table as its own adapter changes it."""
    node = helper.make_node("Gather", ["table.weight", "ids"], ["y"], name="op")
    table = RANDOM.standard_normal((9, 5)).astype(np.float32)
    proto = onnx_models.graph([node], {"table.weight": table}, inputs={"ids": ("batch", "sequence")})
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    base, made = tmp_path / "base.onnx", tmp_path / "made.onnx"
    onnx.save(proto, base)
    targets = [switchable.low_rank("table.weight", Kind.EMBEDDING, ("in", "out"), (9, 5), seed=seed) for seed in (0, 1)]
    adapters = [Adapter(targets=(target,)) for target in targets]
    result = add_slots(base, made, adapters=adapters, batched=True)
    ids = np.array([[1, 8], [0, 3], [4, 4]])
    session = switchable.open_cpu(made)
    assert session.run(None, {"ids": ids})[0].tobytes() == table[ids].tobytes()
    (y,) = session.run(None, {"ids": ids, **stacked(result.manifest, adapters), IDS: np.array([2, 0, 1])})
    tables = [table, *(table + switchable.change(target).T for target in targets)]
    wanted = np.stack([tables[number][row] for number, row in zip([2, 0, 1], ids, strict=True)])
    np.testing.assert_allclose(y, wanted, rtol=1e-4, atol=1e-4)


def test_a_batch_that_nothing_proves_is_refused(tmp_path: Path) -> None:
    """W-012: an operator whose first axis is not the batch, or a model whose batch is fixed, gets no batched slot."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "layer.weight"], ["y"], name="op"),
    ]
    base = tmp_path / "base.onnx"
    onnx_models.graph(nodes, {"layer.weight": W}, inputs={"x": ("batch", "sequence", 6)}, path=base)
    adapter = Adapter(targets=(LINEAR,))
    with pytest.raises(UnsupportedError, match="nothing proves that op computes row by row"):
        add_slots(base, tmp_path / "made.onnx", adapters=[adapter], batched=True)
    fixed = batched_product(tmp_path / "fixed.onnx", (2, 3, 6))
    with pytest.raises(UnsupportedError, match=r"nothing proves that op computes row by row|no free batch axis"):
        add_slots(fixed, tmp_path / "made.onnx", adapters=[adapter], batched=True)
    assert not (tmp_path / "made.onnx").exists()


# Packed


@pytest.mark.parametrize("batched", [False, True])
def test_a_part_of_a_packed_matrix(tmp_path: Path, batched: bool) -> None:
    """A tensor that shares its operator with others changes its own outputs, and no others."""
    parts = {name: RANDOM.standard_normal((6, width)).astype(np.float32) for name, width in (("q", 4), ("k", 3))}
    packed = np.concatenate(list(parts.values()), axis=1)
    shape = ("batch", "sequence", 6)
    base, made, checkpoint = tmp_path / "base.onnx", tmp_path / "made.onnx", tmp_path / "base.safetensors"
    node = helper.make_node("MatMul", ["x", "packed"], ["y"], name="op")
    onnx_models.graph([node], {"packed": packed}, inputs={"x": shape}, output_shape=(*shape[:2], 7), path=base)
    save_file({f"layer.{name}_proj.weight": part.T.copy() for name, part in parts.items()}, checkpoint)
    targets = [
        switchable.low_rank(f"layer.{name}_proj.weight", Kind.LINEAR, ("out", "in"), part.T.shape, rank=rank)
        for rank, (name, part) in enumerate(parts.items(), start=2)
    ]
    adapter = Adapter(targets=tuple(targets))
    result = add_slots(base, made, adapters=[adapter], base=open_base(checkpoint), batched=batched)
    onnx.checker.check_model(str(made), full_check=True)
    x = RANDOM.standard_normal((2, 3, 6)).astype(np.float32)
    session = switchable.open_cpu(made)
    plain = switchable.open_cpu(base).run(None, {"x": x})
    assert switchable.same_bits(session.run(None, {"x": x}), plain)
    arrays = stacked(result.manifest, [adapter]) if batched else factors_for(result.manifest, adapter).arrays
    chosen = {IDS: np.array([1, 0])} if batched else {}
    (y,) = session.run(None, {"x": x, **arrays, **chosen})
    wanted = x @ np.concatenate([switchable.change(target) for target in targets]).T
    np.testing.assert_allclose(y[0], (plain[0] + wanted)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y[1], plain[0][1] if batched else (plain[0] + wanted)[1], rtol=1e-4, atol=1e-4)
