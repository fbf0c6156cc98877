"""External data of every kind: copied, changed where they lie, the graph untouched where nothing in it changes."""

from __future__ import annotations

import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper
from onnx_models import graph, linear_adapter, run_onnx
from parity import relative_error
from safetensors.numpy import load_file

from lora_registry.adapter import Adapter
from lora_registry.digest import Digest
from lora_registry.errors import NotAllowedError
from lora_registry.merge.onnx.model import ADAPTER_KEY, merge_onnx
from lora_registry.onnx.model import OnnxModel
from lora_registry.ops.change import delta

RANDOM = np.random.default_rng(7)
WEIGHTS = {name: RANDOM.standard_normal((40, 40)).astype(np.float32) for name in ("a.weight", "b.weight")}
NODES = [
    helper.make_node("MatMul", ["x", "a.weight"], ["h"]),
    helper.make_node("MatMul", ["h", "b.weight"], ["y"]),
]
X = torch.from_numpy(RANDOM.standard_normal((2, 40)).astype(np.float32))
TARGET = linear_adapter("b.weight", (40, 40), layout=("in", "out"))
ADAPTER = Adapter(targets=(TARGET,))
EXPECTED = X.numpy() @ WEIGHTS["a.weight"] @ (WEIGHTS["b.weight"] + delta(TARGET))


def base_model(folder: Path, form: str) -> Path:
    """Two layers whose weights lie in one file, in one each, in folders, or in a safetensors file."""
    folder.mkdir()
    proto = graph(NODES, WEIGHTS, inputs={"x": ["n", 40]})
    path = folder / "model.onnx"
    if form == "safetensors":
        onnx_ir.save_safetensors(onnx_ir.serde.deserialize_model(proto), path, size_threshold_bytes=0)
    else:
        one = form == "one"
        options = {"all_tensors_to_one_file": one, "location": "model.data" if one else None, "size_threshold": 0}
        onnx.save(proto, path, save_as_external_data=True, **options)
    if form == "folders":
        (folder / "deep").mkdir()
        proto = onnx.load(path, load_external_data=False)
        for tensor in proto.graph.initializer:
            entry = next(entry for entry in tensor.external_data if entry.key == "location")
            (folder / entry.value).rename(folder / "deep" / entry.value)
            entry.value = f"deep/{entry.value}"
        path.write_bytes(proto.SerializeToString())
    return path


def files(folder: Path) -> dict[str, Digest]:
    """Every file below a folder with its digest."""
    return {p.relative_to(folder).as_posix(): Digest.of_file(p) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("form", ["one", "each", "folders", "safetensors"])
def test_under_the_same_name_only_the_changed_bytes_differ(form: str, tmp_path: Path) -> None:
    """The graph is the base's byte for byte, and so is every data file that holds nothing that changed."""
    base = base_model(tmp_path / "base", form)
    before = files(tmp_path / "base")
    (tmp_path / "out").mkdir()
    receipt = merge_onnx(ADAPTER, base, tmp_path / "out" / "model.onnx")
    after = files(tmp_path / "out")
    del after["model.onnx.receipt.json"]
    changed = {name for name in before if before[name] != after[name]}
    assert after.keys() == before.keys()
    assert len(changed) == 1
    assert "model.onnx" not in changed
    assert files(tmp_path / "base") == before
    assert relative_error(run_onnx(tmp_path / "out" / "model.onnx", {"x": X}), EXPECTED) < 1e-5
    assert {record.name: record.digest for record in receipt.outputs} == after
    assert {record.name: record.digest for record in receipt.inputs} == before
    if form == "safetensors":
        (held,) = (tmp_path / "out").glob("*.safetensors")
        np.testing.assert_array_equal(load_file(held)["a.weight"], WEIGHTS["a.weight"])


@pytest.mark.parametrize("form", ["one", "each", "folders", "safetensors"])
def test_under_another_name_every_data_file_gets_one_of_its_own(form: str, tmp_path: Path) -> None:
    """Beside the base, nothing of it is written over, and the graph says what was merged."""
    base = base_model(tmp_path / "base", form)
    before = files(tmp_path / "base")
    merge_onnx(ADAPTER, base, tmp_path / "base" / "merged.onnx")
    assert before.items() <= files(tmp_path / "base").items()
    assert relative_error(run_onnx(tmp_path / "base" / "merged.onnx", {"x": X}), EXPECTED) < 1e-5
    assert ADAPTER_KEY in OnnxModel.open(tmp_path / "base" / "merged.onnx").ir.metadata_props
    again = merge_onnx(ADAPTER, tmp_path / "base" / "merged.onnx", tmp_path / "twice.onnx")
    assert len(again.outputs) == len(before)


def test_checksums_are_those_of_the_new_files(tmp_path: Path) -> None:
    """The optional SHA-1 of a data file follows the file; that of a file without changes stays."""
    base = base_model(tmp_path / "base", "each")
    proto = onnx.load(base, load_external_data=False)
    for tensor in proto.graph.initializer:
        held = (base.parent / tensor.name).read_bytes()
        tensor.external_data.add(key="checksum", value=hashlib.sha1(held).hexdigest())
    base.write_bytes(proto.SerializeToString())
    (tmp_path / "out").mkdir()
    merge_onnx(ADAPTER, base, tmp_path / "out" / "model.onnx")
    merged = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    for before, after in zip(proto.graph.initializer, merged.graph.initializer, strict=True):
        said = {entry.key: entry.value for entry in after.external_data}
        assert said["checksum"] == hashlib.sha1((tmp_path / "out" / said["location"]).read_bytes()).hexdigest()
        assert (before == after) == (after.name == "a.weight")
    assert relative_error(run_onnx(tmp_path / "out" / "model.onnx", {"x": X}), EXPECTED) < 1e-5


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_elements_in_typed_fields_leave_nothing_stale(dtype: type, tmp_path: Path) -> None:
    """Half precision in ``int32_data``, single in ``float_data``: the new values replace the field."""
    weight = WEIGHTS["b.weight"].astype(dtype)
    nodes = [helper.make_node("Cast", ["w"], ["wide"], to=1), helper.make_node("MatMul", ["x", "wide"], ["y"])]
    proto = graph(nodes, {"w": weight}, inputs={"x": ["n", 40]})
    (tensor,) = proto.graph.initializer
    tensor.ClearField("raw_data")
    if dtype is np.float32:
        tensor.float_data.extend(weight.reshape(-1).tolist())
    else:
        tensor.int32_data.extend(weight.view(np.uint16).reshape(-1).tolist())
    onnx.save(proto, tmp_path / "base.onnx")
    target = linear_adapter("w", (40, 40), layout=("in", "out"))
    merge_onnx(Adapter(targets=(target,)), tmp_path / "base.onnx", tmp_path / "m.onnx")
    (written,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert not written.int32_data
    assert not written.float_data
    wanted = (weight.astype(np.float64) + delta(target)).astype(np.float32).astype(dtype)
    held = onnx.numpy_helper.to_array(written).astype(np.float64)
    np.testing.assert_allclose(held, wanted.astype(np.float64), rtol=float(ml_dtypes.finfo(dtype).eps), atol=1e-6)


def test_a_copy_goes_behind_all_that_the_data_file_held(tmp_path: Path) -> None:
    """A weight that another layer reads as well is copied; what was there stays where it was."""
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["h"], name="/a/MatMul"),
        helper.make_node("MatMul", ["h", "shared"], ["y"], name="/b/MatMul"),
    ]
    (tmp_path / "base").mkdir()
    path = tmp_path / "base" / "model.onnx"
    graph(nodes, {"shared": WEIGHTS["a.weight"]}, inputs={"x": ["n", 40]}, path=path, external=True)
    target = linear_adapter("b.weight", (40, 40))
    merge_onnx(Adapter(targets=(target,)), path, tmp_path / "model.onnx")
    old, new = (folder / "model.onnx.data" for folder in (tmp_path / "base", tmp_path))
    assert new.read_bytes()[: old.stat().st_size] == old.read_bytes()
    expected = X.numpy() @ WEIGHTS["a.weight"] @ (WEIGHTS["a.weight"] + delta(target).T)
    assert relative_error(run_onnx(tmp_path / "model.onnx", {"x": X}), expected) < 1e-5
    assert onnx.load(tmp_path / "model.onnx").graph.initializer[0].data_type == TensorProto.FLOAT


def test_the_same_name_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    """Under another spelling, too."""
    base = base_model(tmp_path / "base", "one")
    (tmp_path / "link").symlink_to(tmp_path / "base")
    for out in (base, tmp_path / "link" / "model.onnx"):
        with pytest.raises(NotAllowedError):
            merge_onnx(ADAPTER, base, out, overwrite=True)


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_do_not_shape_the_output(workers: int, tmp_path: Path) -> None:
    """One thread or four: the same bytes, and progress that ends at all of them."""
    base = base_model(tmp_path / "base", "one")
    (tmp_path / "out").mkdir()
    seen: list[tuple[int, int]] = []
    merge_onnx(
        ADAPTER, base, tmp_path / "out" / "model.onnx", workers=workers, progress=lambda *counts: seen.append(counts)
    )
    assert seen[-1] == (12_800, 12_800)
    one = merge_onnx(ADAPTER, base, tmp_path / "m.onnx", workers=1)
    assert (tmp_path / "m.onnx.data").read_bytes() == (tmp_path / "out" / "model.data").read_bytes()
    assert all(record.fidelity is not None and record.fidelity.relative_error < 1e-6 for record in one.tensors)
