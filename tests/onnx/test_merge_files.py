"""What a merge does to files: whole or not at all, the base never touched, untouched bytes the base's."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
import tiny_models
import torch
from onnx import helper
from onnx_models import export, graph, linear_adapter, run_onnx, tensor_of
from parity import relative_error

from lora_registry.adapter import Adapter, Target
from lora_registry.digest import Digest
from lora_registry.errors import (
    ConflictError,
    InvalidInputError,
    LoregError,
    MachineError,
    NotAllowedError,
    NotFoundError,
)
from lora_registry.format.identity import content_digest
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.onnx.model import ADAPTER_KEY, BASE_KEY, merge_onnx
from lora_registry.onnx import writer
from lora_registry.onnx.external import byte_range
from lora_registry.onnx.model import OnnxModel
from lora_registry.ops.change import delta
from lora_registry.ops.fingerprint import fingerprint

Exports = Callable[[str, str], Path]

RANDOM = np.random.default_rng(7)
WEIGHTS = {name: RANDOM.standard_normal((40, 40)).astype(np.float32) for name in ("a.weight", "b.weight", "c.weight")}
NODES = [
    helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
    helper.make_node("MatMul", ["h", "b.weight"], ["i"]),
    helper.make_node("MatMul", ["i", "c.weight"], ["y"]),
]
X = torch.from_numpy(RANDOM.standard_normal((2, 40)).astype(np.float32))


def target(name: str) -> Target:
    """A change of one of the matrices."""
    return linear_adapter(name, (40, 40), layout=("in", "out"))


def base_model(folder: Path, *, external: bool = True, one_file: bool = True) -> Path:
    """Three layers in a folder of their own, embedded, in one data file, or in one for each tensor."""
    folder.mkdir(exist_ok=True)
    proto = graph(NODES, WEIGHTS, inputs={"x": ["n", 40]})
    options = {"all_tensors_to_one_file": one_file, "location": "base.data" if one_file else None, "size_threshold": 0}
    onnx.save(proto, folder / "base.onnx", save_as_external_data=external, **options)
    return folder / "base.onnx"


def expected_output(*changed: Target) -> np.ndarray:
    """The output of the three layers with some changed."""
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    for each in changed:
        weights[each.name] += delta(each)
    return X.numpy() @ weights["a.weight"] @ weights["b.weight"] @ weights["c.weight"]


def listing(folder: Path) -> dict[str, Digest]:
    """Every file of a folder with its digest."""
    return {path.name: Digest.of_file(path) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("external", "one_file"), [(False, True), (True, True), (True, False)])
def test_every_form_of_storage_merges(external: bool, one_file: bool, tmp_path: Path) -> None:
    """Embedded, one data file, one file for each tensor; the output has as many files, under its own name."""
    base = base_model(tmp_path / "base", external=external, one_file=one_file)
    before = listing(tmp_path / "base")
    changed = target("b.weight")
    (tmp_path / "out").mkdir()
    merge_onnx(Adapter(targets=(changed,)), base, tmp_path / "out" / "m.onnx")
    data = set() if not external else {"m.onnx.data"} if one_file else {f"m.onnx.{name}" for name in WEIGHTS}
    names = {"m.onnx", "m.onnx.receipt.json"} | data
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert listing(tmp_path / "base") == before
    onnx.checker.check_model(str(tmp_path / "out" / "m.onnx"), full_check=True)
    assert relative_error(run_onnx(tmp_path / "out" / "m.onnx", {"x": X}), expected_output(changed)) < 1e-5


def test_untouched_bytes_of_the_data_file_are_the_base_s(tmp_path: Path) -> None:
    """Only the range of the changed tensor differs, and it lies where it lay."""
    base = base_model(tmp_path / "base")
    merge_onnx(Adapter(targets=(target("b.weight"),)), base, tmp_path / "m.onnx")
    old, new = (tmp_path / "base" / "base.data").read_bytes(), (tmp_path / "m.onnx.data").read_bytes()
    begin, end = byte_range(OnnxModel.open(base).initializers["b.weight"].const_value)
    assert len(new) == len(old)
    assert (new[:begin], new[end:]) == (old[:begin], old[end:])
    assert new[begin:end] != old[begin:end]


def test_the_graph_differs_in_locations_and_metadata_alone(tmp_path: Path) -> None:
    """Nodes, inputs, outputs and types are the base's; onnx_ir also lists the types of initializers."""
    base = base_model(tmp_path / "base")
    merge_onnx(Adapter(targets=(target("b.weight"),)), base, tmp_path / "m.onnx")
    one, other = (onnx.load(path, load_external_data=False) for path in (base, tmp_path / "m.onnx"))
    for proto in (one, other):
        del proto.metadata_props[:], proto.graph.value_info[:]
        for tensor in proto.graph.initializer:
            del tensor.external_data[:]
    assert one == other


def test_tensors_that_share_bytes_are_separated(tmp_path: Path) -> None:
    """Two initializers point at one range of the data file; changing one must not change the other."""
    base = base_model(tmp_path / "base")
    proto = onnx.load(base, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    del tensors["c.weight"].external_data[:]
    tensors["c.weight"].external_data.extend(tensors["b.weight"].external_data)
    base.write_bytes(proto.SerializeToString())
    merge_onnx(Adapter(targets=(target("b.weight"),)), base, tmp_path / "m.onnx")
    merged = OnnxModel.open(tmp_path / "m.onnx")
    np.testing.assert_array_equal(merged.array("c.weight"), WEIGHTS["b.weight"])
    np.testing.assert_allclose(
        merged.array("b.weight"), WEIGHTS["b.weight"] + delta(target("b.weight")), rtol=1e-5, atol=1e-6
    )


def test_constants_in_data_files_move_along(tmp_path: Path) -> None:
    """A Constant node whose tensor is external points into the new data file."""
    base = base_model(tmp_path / "base")
    proto = onnx.load(base, load_external_data=False)
    constant = next(tensor for tensor in proto.graph.initializer if tensor.name == "c.weight")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["c.weight"], value=constant))
    proto.graph.initializer.remove(constant)
    base.write_bytes(proto.SerializeToString())
    changed = target("a.weight")
    merge_onnx(Adapter(targets=(changed,)), base, tmp_path / "m.onnx")
    assert relative_error(run_onnx(tmp_path / "m.onnx", {"x": X}), expected_output(changed)) < 1e-5


def test_a_graph_that_would_be_too_large_gets_a_data_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A protobuf message ends at 2 GiB; what would exceed it is written beside the graph."""
    monkeypatch.setattr(writer, "LARGEST_GRAPH", 10_000)
    changed = target("b.weight")
    merge_onnx(Adapter(targets=(changed,)), base_model(tmp_path / "base", external=False), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 5_000
    assert relative_error(run_onnx(tmp_path / "m.onnx", {"x": X}), expected_output(changed)) < 1e-5


def test_equal_inputs_give_equal_files(tmp_path: Path) -> None:
    """Nothing of the time, the machine or the path is in the output."""
    for number in ("1", "2"):
        base = base_model(tmp_path / number)
        (tmp_path / f"out{number}").mkdir()
        merge_onnx(Adapter(targets=(target("b.weight"),)), base, tmp_path / f"out{number}" / "m.onnx")
    assert listing(tmp_path / "out1") == listing(tmp_path / "out2")


def test_outputs_that_exist_are_kept(tmp_path: Path) -> None:
    """The model, its data file or its receipt: whichever exists stops the merge, unless overwriting is asked."""
    base, adapter = base_model(tmp_path / "base"), Adapter(targets=(target("b.weight"),))
    for name in ("m.onnx", "m.onnx.data", "m.onnx.receipt.json"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ConflictError):
            merge_onnx(adapter, base, tmp_path / "m.onnx")
        assert {path.name for path in tmp_path.iterdir()} == {"base", name}
        assert (tmp_path / name).read_text() == "mine"
        merge_onnx(adapter, base, tmp_path / "m.onnx", overwrite=True)
        for path in tmp_path.glob("m.*"):
            path.unlink()


def test_the_base_is_never_an_output(tmp_path: Path) -> None:
    """Not even where overwriting is asked, not under another spelling, and not its data file."""
    base, adapter = base_model(tmp_path / "base"), Adapter(targets=(target("b.weight"),))
    before = listing(tmp_path / "base")
    (tmp_path / "base" / "base.data").rename(tmp_path / "base" / "base.onnx.data")
    proto = onnx.load(base, load_external_data=False)
    for tensor in proto.graph.initializer:
        next(entry for entry in tensor.external_data if entry.key == "location").value = "base.onnx.data"
    base.write_bytes(proto.SerializeToString())
    before = listing(tmp_path / "base")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    for out in (base, tmp_path / "link" / "base.onnx", tmp_path / "base" / ".." / "base" / "base.onnx"):
        with pytest.raises(NotAllowedError, match="never changed"):
            merge_onnx(adapter, base, out, overwrite=True)
    assert listing(tmp_path / "base") == before


@pytest.mark.parametrize("external", [False, True])
def test_nothing_stays_behind_when_a_merge_fails(external: bool, tmp_path: Path) -> None:
    """A weight that overflows half precision is found while writing; no file and no folder remains."""
    weights = {"a.weight": np.full((40, 40), 6e4, np.float16), "b.weight": np.ones((40, 40), np.float16)}
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=10),
        helper.make_node("MatMul", ["half", "b.weight"], ["h"]),
        helper.make_node("MatMul", ["h", "a.weight"], ["i"]),
        helper.make_node("Cast", ["i"], ["y"], to=1),
    ]
    (tmp_path / "base").mkdir()
    graph(nodes, weights, inputs={"x": ["n", 40]}, path=tmp_path / "base" / "b.onnx", external=external)
    with pytest.raises(InvalidInputError, match=r"a\.weight.*F16"):
        merge_onnx(
            Adapter(targets=(replace(target("a.weight"), scale=1e4), target("b.weight"))),
            tmp_path / "base" / "b.onnx",
            tmp_path / "m.onnx",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_missing_target_leaves_no_output(exports: Exports, tmp_path: Path) -> None:
    """All targets or none: one that is not there stops the other."""
    adapter = Adapter(
        targets=(
            linear_adapter("model.layers.0.self_attn.q_proj.weight", (64, 48)),
            linear_adapter("model.layers.7.self_attn.q_proj.weight", (64, 48)),
        )
    )
    with pytest.raises(InvalidInputError, match="1 of 2 targets") as refusal:
        merge_onnx(adapter, exports("llama-untied", "optimized"), tmp_path / "m.onnx")
    assert [finding.place for finding in refusal.value.findings] == ["model.layers.7.self_attn.q_proj.weight"]
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operating system's refusal becomes one line; /dev/full is a real full disk for one file."""
    base = base_model(tmp_path / "base", external=False)
    monkeypatch.setattr(writer.os, "fsync", lambda descriptor: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(MachineError, match="the disk is full"):
        merge_onnx(Adapter(targets=(target("b.weight"),)), base, tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The folder of the output is not made up."""
    with pytest.raises(NotFoundError, match="no such folder"):
        merge_onnx(Adapter(targets=(target("b.weight"),)), base_model(tmp_path / "base"), tmp_path / "no" / "m.onnx")


def test_metadata_and_receipt_say_what_was_done(tmp_path: Path) -> None:
    """The model names the adapter by its content; the receipt names every file by its digest."""
    adapter = Adapter(targets=(target("b.weight"),))
    receipt = merge_onnx(adapter, base_model(tmp_path / "base"), tmp_path / "m.onnx")
    metadata = OnnxModel.open(tmp_path / "m.onnx").ir.metadata_props
    assert metadata[ADAPTER_KEY] == str(content_digest(adapter))
    assert json.loads(metadata[BASE_KEY])["verdict"] == "same-shapes"
    written = json.loads((tmp_path / "m.onnx.receipt.json").read_text())
    assert written == receipt.to_json()
    assert {file["name"]: file["digest"] for file in written["outputs"]} == {
        name: str(Digest.of_file(tmp_path / name)) for name in ("m.onnx", "m.onnx.data")
    }
    assert {file["name"] for file in written["inputs"]} == {"base.onnx", "base.data"}
    (tensor,) = written["tensors"]
    assert tensor["fidelity"]["relative_error"] < 1e-6
    assert tensor["evidence"]["initializers"][0]["sites"][0]["operator"] == "MatMul input 1"
    assert str(tmp_path) not in (tmp_path / "m.onnx.receipt.json").read_text()


@pytest.mark.parametrize("exporter", ["raw", "optimized", "torchscript"])
def test_fingerprints_of_the_checkpoint_hold_for_its_export(
    exporter: str, exports: Exports, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """The verdict is exact for the base that the adapter was made for, transposed or not; another is refused."""
    base, name = open_base(tiny_dir("llama-untied")), "model.layers.0.self_attn.k_proj.weight"
    made_for = Adapter(targets=(linear_adapter(name, (32, 48)),)).with_fingerprints(
        {name: fingerprint(base.array(name))}
    )
    model = exports("llama-untied", exporter)
    receipt = merge_onnx(made_for, model, tmp_path / "m.onnx", require_exact=True)
    assert receipt.verdict == "exact"
    other = made_for.with_fingerprints({name: fingerprint(base.array(name) + 1)})
    with pytest.raises(InvalidInputError, match="M-004"):
        merge_onnx(other, model, tmp_path / "other.onnx", require_exact=True)
    assert merge_onnx(other, model, tmp_path / "other.onnx").verdict == "same-shapes"


def test_exports_with_external_data_merge(tmp_path: Path) -> None:
    """torch's own external data, with a clone of the tied table appended to the copy."""
    model = tiny_models.llama(tied=True)
    (tmp_path / "base").mkdir()
    base = export(model, "raw", tmp_path / "base" / "b.onnx", external=True)
    assert (tmp_path / "base" / "b.onnx.data").exists()
    head = linear_adapter("lm_head.weight", (99, 48))
    merge_onnx(Adapter(targets=(head,)), base, tmp_path / "m.onnx")
    onnx.checker.check_model(str(tmp_path / "m.onnx"), full_check=True)
    inputs = tiny_models.inputs(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + torch.from_numpy(delta(head)))
    with torch.no_grad():
        expected = model(**inputs, use_cache=False)[0].numpy()
    assert relative_error(run_onnx(tmp_path / "m.onnx", inputs), expected) < 1e-5
    old, new = (path.read_bytes() for path in (tmp_path / "base" / "b.onnx.data", tmp_path / "m.onnx.data"))
    assert new[: len(old)] == old


@pytest.mark.slow
def test_offsets_beyond_two_gibibytes(tmp_path: Path) -> None:
    """A tensor that lies behind 2.2 GB of others is changed in place; the others stay a hole in the file."""
    rows = 14_000
    behind = rows * rows * 4 * 3
    (tmp_path / "base").mkdir()
    with (tmp_path / "base" / "big.data").open("wb") as stream:
        stream.truncate(behind)
        stream.seek(behind)
        stream.write(WEIGHTS["a.weight"].tobytes())
    proto = graph([helper.make_node("MatMul", ["x", "a.weight"], ["y"])], {}, inputs={"x": ["n", 40]})
    for name, shape, offset in (("big", (3, rows, rows), 0), ("a.weight", (40, 40), behind)):
        tensor = proto.graph.initializer.add(name=name, data_type=1, dims=shape, data_location=1)
        length = int(np.prod(shape)) * 4
        for key, value in (("location", "big.data"), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    (tmp_path / "base" / "b.onnx").write_bytes(proto.SerializeToString())
    merge_onnx(Adapter(targets=(target("a.weight"),)), tmp_path / "base" / "b.onnx", tmp_path / "m.onnx")
    merged = OnnxModel.open(tmp_path / "m.onnx")
    np.testing.assert_allclose(
        merged.array("a.weight"), WEIGHTS["a.weight"] + delta(target("a.weight")), rtol=1e-5, atol=1e-6
    )
    assert byte_range(merged.initializers["a.weight"].const_value)[0] == behind > 1 << 31
    assert not merged.array("big")[1].any()


def test_the_error_is_always_one_of_loreg_s(tmp_path: Path) -> None:
    """A zero-length axis, an empty graph, a bare constant: refused or merged, never a traceback of a library."""
    graph([helper.make_node("Identity", ["x"], ["y"])], {}, inputs={"x": ["n", 40]}, path=tmp_path / "b.onnx")
    with pytest.raises(LoregError):
        merge_onnx(Adapter(targets=(target("a.weight"),)), tmp_path / "b.onnx", tmp_path / "m.onnx")
    assert onnx_ir.load(tmp_path / "b.onnx").graph.num_nodes() == 1
    empty = {"e.weight": np.zeros((0, 40), np.float32)}
    graph(
        [helper.make_node("MatMul", ["x", "e.weight"], ["y"])],
        empty,
        inputs={"x": ["n", 0]},
        path=tmp_path / "e.onnx",
        external=True,
    )
    with pytest.raises(LoregError):
        merge_onnx(
            Adapter(
                targets=(
                    replace(
                        target("e.weight"),
                        tensors={"A": tensor_of(torch.zeros(2, 40)), "B": tensor_of(torch.zeros(40, 2))},
                    ),
                )
            ),
            tmp_path / "e.onnx",
            tmp_path / "m.onnx",
        )
