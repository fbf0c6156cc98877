"""The converter of ``.onnx_adapter`` files: for one model, checked against it, and run by ONNX Runtime itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_models
import onnxruntime
import pytest
import switchable_models as switchable
from click.testing import CliRunner
from loreg_converters.onnx_adapter import OnnxAdapterConverter, converter
from onnx import helper

from lora_registry.adapter import Adapter, Kind, Tensor
from lora_registry.cli import main
from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError, InvalidInputError, UnsupportedError, UsageError
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.onnx.slots.adapter_file import AdapterFile
from lora_registry.onnx.slots.insert import add_slots, slots_of
from lora_registry.testing import ConverterContract

RANDOM = np.random.default_rng(0)
W = RANDOM.standard_normal((6, 4)).astype(np.float32)
KERNEL = RANDOM.standard_normal((5, 4, 3)).astype(np.float32)
LINEAR = switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (6, 4), scale=0.75)
CONV = switchable.low_rank("conv.weight", Kind.CONV, ("out", "in", "k"), (5, 4, 3), rank=2)
ADAPTER = Adapter(targets=(LINEAR, CONV))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """x (batch, length, 6) → MatMul → Transpose → Conv → y."""
    nodes = [
        helper.make_node("MatMul", ["x", "layer.weight"], ["z"], name="op"),
        helper.make_node("Transpose", ["z"], ["t"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["t", "conv.weight"], ["y"], name="conv", pads=[1, 1]),
    ]
    path = tmp_path / "base.onnx"
    weights = {"layer.weight": W, "conv.weight": KERNEL}
    onnx_models.graph(
        nodes, weights, inputs={"x": ("batch", "length", 6)}, output_shape=("batch", 5, "length"), path=path
    )
    return path


@pytest.fixture
def model(base: Path) -> Path:
    """The same with a slot for each of its two weights."""
    path = base.with_name("switchable.onnx")
    add_slots(base, path, adapters=[ADAPTER])
    return path


class TestContract(ConverterContract):
    """What every converter owes its users, for one model."""

    @pytest.fixture(autouse=True)
    def _for_model(self, model: Path) -> None:
        self.converter = converter.for_model(model)

    @pytest.fixture
    def sample(self, model: Path, tmp_path: Path) -> Path:
        """A file for the model."""
        path = tmp_path / "sample.onnx_adapter"
        converter.for_model(model).write(ADAPTER, path)
        return path


def written(model: Path, adapter: Adapter = ADAPTER) -> Path:
    """A file beside the model."""
    path = model.with_name("x.onnx_adapter")
    converter.for_model(model).write(adapter, path)
    return path


def test_onnxruntime_computes_base_plus_adapter(base: Path, model: Path) -> None:
    """ONNX Runtime, fed by its own LoraAdapter, computes with W + s·B·A, for a matrix and for a kernel."""
    adapter = onnxruntime.LoraAdapter()
    adapter.Load(str(written(model)))
    options = onnxruntime.RunOptions()
    options.add_active_adapter(adapter)
    x = RANDOM.standard_normal((2, 7, 6)).astype(np.float32)
    (got,) = switchable.open_cpu(model).run(None, {"x": x}, options)
    changed = {
        "layer.weight": (W + switchable.change(LINEAR).T).astype(np.float32),
        "conv.weight": (KERNEL + switchable.change(CONV).reshape(KERNEL.shape)).astype(np.float32),
    }
    proto = onnx_models.onnx.load(base)
    for initializer in proto.graph.initializer:
        initializer.CopyFrom(onnx_models.numpy_helper.from_array(changed[initializer.name], initializer.name))
    (wanted,) = switchable.open_cpu(proto.SerializeToString()).run(None, {"x": x})
    assert switchable.relative(got, wanted) < 1e-5


def test_there_and_back_makes_the_same_change(model: Path) -> None:
    """What comes back has scale 1 and the same s·B·A; what follows from nothing in the file is reported as lost."""
    again, report = converter.for_model(model).read(written(model))
    for before, after in zip(ADAPTER, again, strict=True):
        assert (after.name, after.kind, after.layout, after.shape, after.scale) == (
            before.name, before.kind, before.layout, before.shape, 1.0,
        )  # fmt: skip
        np.testing.assert_allclose(switchable.change(after), switchable.change(before), rtol=1e-5, atol=1e-6)
        assert after.fingerprint == slots_of(model).slots[after.name].fingerprint
    assert again.origin["format"] == "onnx-adapter"
    assert any(entry.subject == "scales" for entry in report.entries)


def test_versions_are_of_the_model_and_of_the_parameters(model: Path) -> None:
    """W-005, W-006: both numbers are 31 bits of digests, and neither is 0."""
    file = AdapterFile.read(written(model))
    assert file.model_version == slots_of(model).model_version != 0
    assert file.adapter_version == file.checksum != 0


def test_a_file_for_another_model_is_refused(base: Path, model: Path) -> None:
    """W-005: the same slots over another base tensor are another model."""
    proto = onnx_models.onnx.load(base)
    proto.graph.initializer[0].CopyFrom(onnx_models.numpy_helper.from_array(W + 1, "layer.weight"))
    other = base.with_name("other.onnx")
    onnx_models.onnx.save(proto, other)
    add_slots(other, base.with_name("other_switchable.onnx"), adapters=[ADAPTER])
    with pytest.raises(InvalidInputError, match=r"is for model version \d+, .* has \d+ \(W-005\)"):
        converter.for_model(base.with_name("other_switchable.onnx")).read(written(model))


def test_a_changed_parameter_is_found(model: Path) -> None:
    """W-006: one bit of one factor, and the file is not what it was written as."""
    path = written(model)
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(IntegrityError, match="W-006"):
        converter.for_model(model).read(path)


def test_what_does_not_fit_is_refused_with_every_finding(model: Path) -> None:
    """W-007 to W-010: no slot, another shape, another base, a value beyond the slot's type: each by name."""
    stranger = replace(LINEAR, name="elsewhere.weight")
    shape = switchable.low_rank("layer.weight", Kind.LINEAR, ("in", "out"), (4, 6))
    foreign = replace(LINEAR, fingerprint=Digest.of(b"another base"))
    huge = replace(LINEAR, scale=1e39)
    for targets, ids in (
        ((stranger, CONV), {"W-007"}),
        ((stranger, replace(CONV, name="far.weight")), {"W-007"}),
        ((shape,), {"W-008"}),
        ((foreign,), {"W-009"}),
        ((huge,), {"W-010"}),
    ):
        with pytest.raises(InvalidInputError) as caught:
            written(model, Adapter(targets=targets))
        assert {finding.rule for finding in caught.value.findings} == ids
    assert not model.with_name("x.onnx_adapter").exists()


def test_what_a_slot_cannot_hold_is_refused_by_name(model: Path) -> None:
    """DoRA, a gate and a batched model have no place in such a file."""
    magnitude = Tensor("F32", (4,), np.ones(4, np.float32).tobytes())
    dora = replace(LINEAR, tensors={**LINEAR.tensors, "magnitude": magnitude})
    with pytest.raises(UnsupportedError, match=r"layer\.weight: a magnitude \(DoRA\) has no slot"):
        written(model, Adapter(targets=(dora,)))
    with pytest.raises(UnsupportedError, match="a slot is on for a whole run"):
        written(model, Adapter(targets=(LINEAR,), gate=(1, 2)))


def test_nothing_without_a_model(model: Path) -> None:
    """Names of inputs mean nothing without the graph, so that the model is asked for; other formats need none."""
    path = written(model)
    for job in (lambda: converter.read(path), lambda: OnnxAdapterConverter().write(ADAPTER, path.with_name("y"))):
        with pytest.raises(UsageError, match="say which switchable model it is for, with --model"):
            job()


def test_fingerprints_prove_the_base(model: Path) -> None:
    """An adapter that states the model's own fingerprints is proven, and nothing about that is reported as lost."""
    slots = slots_of(model).slots
    proven = Adapter(targets=tuple(replace(each, fingerprint=slots[each.name].fingerprint) for each in ADAPTER))
    report = converter.for_model(model).write(proven, model.with_name("p.onnx_adapter"))
    assert not any("proof" in entry.subject for entry in report.losses)
    report = converter.for_model(model).write(ADAPTER, model.with_name("q.onnx_adapter"))
    assert any("proof of the base" in entry.subject for entry in report.losses)


def test_the_command(model: Path, tmp_path: Path) -> None:
    """`loreg convert` goes both ways with --model, and says so where it is missing or out of place."""
    native = tmp_path / "a.loreg.safetensors"
    write_adapter(ADAPTER, native)
    run = CliRunner().invoke
    file, again = str(tmp_path / "a.onnx_adapter"), tmp_path / "again.loreg.safetensors"
    assert run(main, ["convert", str(native), file, "--model", str(model)]).exit_code == 0
    assert run(main, ["convert", file, str(again), "--model", str(model)]).exit_code == 0
    direct, _ = converter.for_model(model).read(Path(file))
    assert content_digest(read_adapter(again)) == content_digest(direct)
    missing = run(main, ["convert", str(native), str(tmp_path / "b.onnx_adapter")])
    assert (missing.exit_code, "--model" in missing.stderr) == (2, True)
    needless = run(main, ["convert", str(native), str(tmp_path / "peft"), "--to", "peft", "--model", str(model)])
    assert (needless.exit_code, "leave out --model" in needless.stderr) == (2, True)
