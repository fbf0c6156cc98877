"""Adapters that need a feature, through every way into a model; and what no way may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import composed_adapters as composed
import numpy as np
import pytest
import tiny_models
import torch
from onnx_models import EXPORTERS, export, run_onnx, run_torch
from safetensors.numpy import load_file, save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import ConflictError, InvalidInputError, UnsupportedError
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.merge.options import MergeOptions
from lora_registry.ops.arrays import Array, from_array, to_array
from lora_registry.ops.change import delta, merged
from lora_registry.runtime.adapted import Adapted
from lora_registry.runtime.verify import verify

Folders = Callable[[str], Path]


def adapter_for(model: str) -> Adapter:
    """One target of each kind, on modules of each sort."""
    if model == "cnn":
        targets = (
            composed.loha("stem.weight", (12, 6, 3, 3), size=1.0),
            composed.lokr("pointwise.weight", (10, 16, 1, 1)),
            composed.lokr("along.weight", (14, 10, 3)),
            composed.sparse("head.weight", (7, 14)),
            composed.sparse("head.bias", (7,)),
        )
    elif model == "gpt2":
        targets = (
            composed.loha("transformer.h.0.attn.c_attn.weight", (48, 144), layout=("in", "out")),
            composed.lokr("transformer.h.0.mlp.c_fc.weight", (48, 80), layout=("in", "out")),
            composed.sparse("transformer.h.1.mlp.c_fc.weight", (48, 80)),
        )
    else:
        targets = (
            composed.loha("model.layers.0.self_attn.q_proj.weight", (64, 48)),
            composed.lokr("model.layers.0.mlp.down_proj.weight", (48, 80)),
            composed.lokr("model.layers.1.self_attn.o_proj.weight", (48, 64)),
            composed.sparse("model.layers.1.mlp.up_proj.weight", (80, 48)),
            composed.sparse("model.norm.weight", (48,)),
        )
    return Adapter(targets=targets)


@pytest.mark.parametrize("model", ["llama-untied", "gpt2", "cnn"])
def test_the_unmerged_reference_agrees_with_the_arithmetic(model: str) -> None:
    """Two implementations, in torch and in numpy, give the same weights for every kind and layout."""
    module, adapter = tiny_models.MODELS[model](), adapter_for(model)
    before = {name: tensor.detach().numpy().copy() for name, tensor in module.named_parameters()}
    with Adapted(module, adapter):
        inside = dict(module.named_parameters())
        for target in adapter:
            got = inside[target.name].detach().numpy()
            np.testing.assert_allclose(got, merged(target, before[target.name]), rtol=1e-5, atol=1e-6)
            assert not np.allclose(got, before[target.name])


@pytest.mark.parametrize("model", ["llama-untied", "gpt2"])
def test_merged_into_a_checkpoint(model: str, tiny_dir: Folders, tmp_path: Path) -> None:
    """From a native file on the disk into a folder; every changed tensor is W', and the outputs are the reference's."""
    write_adapter(adapter_for(model), tmp_path / "a.loreg.safetensors")
    adapter = read_adapter(tmp_path / "a.loreg.safetensors")
    receipt = merge_checkpoint(adapter, tiny_dir(model), tmp_path / "out")
    base, out = (load_file(folder / "model.safetensors") for folder in (tiny_dir(model), tmp_path / "out"))
    changed = {target.name: base[target.name] + delta(target) for target in adapter}
    for name, array in out.items():
        np.testing.assert_allclose(array, changed.get(name, base[name]), rtol=1e-5, atol=1e-6)
    assert {record.target for record in receipt.tensors} == changed.keys()
    report = verify(tmp_path / "out", tiny_dir(model), adapter)
    assert report.holds
    wrong = Adapter(targets=tuple(replace(target, scale=-target.scale) for target in adapter))
    assert not verify(tmp_path / "out", tiny_dir(model), wrong).holds


@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("model", ["llama-untied", "gpt2", "cnn"])
def test_merged_into_onnx(model: str, exporter: str, tmp_path: Path) -> None:
    """Matrices that exporters transposed, kernels, and tensors without axes are found; the outputs are the reference's.

    A sparse change of a square tensor that was transposed would need the base; none is square here.
    """
    module, adapter = tiny_models.MODELS[model](), adapter_for(model)
    path = export(module, exporter, tmp_path / "base.onnx")
    receipt = merge_onnx(adapter, path, tmp_path / "m.onnx")
    assert {record.target for record in receipt.tensors} == {target.name for target in adapter}
    inputs = tiny_models.inputs(module)
    plain = run_torch(module, inputs)
    with Adapted(module, adapter):
        wanted = run_torch(module, inputs)
    size = np.abs(wanted).max()
    assert np.abs(wanted - plain).max() > 1e-2 * size
    assert np.abs(run_onnx(tmp_path / "m.onnx", inputs) - wanted).max() < 1e-4 * size


def test_sums_of_several_kinds_meet_in_one_tensor(tiny_dir: Folders, tmp_path: Path) -> None:
    """With ``both``, changes of the head and of the embeddings add up in the tensor that they share."""
    head = composed.loha("lm_head.weight", (99, 48))
    rows = composed.sparse("model.embed_tokens.weight", (99, 48))
    both = Adapter(targets=(head, rows))
    merge_checkpoint(both, tiny_dir("llama-tied"), tmp_path / "out", MergeOptions(tied="both"))
    base, out = (load_file(folder / "model.safetensors") for folder in (tiny_dir("llama-tied"), tmp_path / "out"))
    name = "model.embed_tokens.weight"
    np.testing.assert_allclose(out[name], base[name] + delta(head) + delta(rows), rtol=1e-5, atol=1e-6)
    with pytest.raises(ConflictError, match="is tied"):
        merge_checkpoint(both, tiny_dir("llama-tied"), tmp_path / "again", MergeOptions(tied="error"))


def gated() -> Adapter:
    return replace(adapter_for("llama-untied"), gate=(5, 7))


def grown() -> Adapter:
    """A table of 99 rows that becomes 101."""
    value = from_array(np.ones((2, 48), np.float32))
    target = Target(
        name="model.embed_tokens.weight",
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=(99, 48),
        rows=(99, 100),
        length=101,
        tensors={"value": value},
    )
    return Adapter(targets=(target,))


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (gated(), r"switched on by tokens \[5, 7\] \(activated LoRA\)"),
        (grown(), r"model\.embed_tokens\.weight: adds 2 rows to the 99"),
    ],
    ids=["gated", "grown"],
)
def test_what_no_merge_can_hold_is_refused_everywhere(
    adapter: Adapter, message: str, tiny_dir: Folders, tmp_path: Path
) -> None:
    """A gate, in a folder, a file, ONNX, beside the weights and in the proof; rows behind the base's but in a folder.

    By name: P-042, P-046, P-047.
    """
    write_adapter(adapter, tmp_path / "a.loreg.safetensors")
    adapter = read_adapter(tmp_path / "a.loreg.safetensors")
    folder, module = tiny_dir("llama-untied"), tiny_models.MODELS["llama-untied"]()
    onnx = export(module, "raw", tmp_path / "base.onnx")
    before = sorted(tmp_path.iterdir())
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    checkpoints = (
        lambda: merge_checkpoint(adapter, folder, tmp_path / "out"),
        lambda: merge_checkpoint(adapter, folder / "model.safetensors", tmp_path / "out.safetensors"),
    )
    for attempt in (
        *(checkpoints if adapter.gate else ()),
        lambda: merge_onnx(adapter, onnx, tmp_path / "out.onnx"),
        lambda: Adapted(module, adapter),
        lambda: verify(folder, folder, adapter),
    ):
        with pytest.raises(UnsupportedError, match=message):
            attempt()
    assert sorted(tmp_path.iterdir()) == before
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_broken_positions_are_not_merged(tmp_path: Path) -> None:
    """A reader does not look at the data (P-001); the merge does, and leaves nothing behind."""
    target = composed.sparse("w", (4, 6))
    backwards = from_array(to_array(target.tensors["index"])[::-1])
    broken = Adapter(targets=(replace(target, tensors={**target.tensors, "index": backwards}),))
    save_file({"w": np.zeros((4, 6), np.float32)}, tmp_path / "base.safetensors")
    with pytest.raises(InvalidInputError, match="not ascending"):
        merge_checkpoint(broken, tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_a_composed_change_on_a_shape_that_is_not_the_base_is_refused(tmp_path: Path) -> None:
    """A base that stores the matrix the other way round is told so."""
    weights: dict[str, Array] = {"w": np.zeros((6, 4), np.float32)}
    save_file(weights, tmp_path / "base.safetensors")
    with pytest.raises(InvalidInputError) as refused:
        merge_checkpoint(
            Adapter(targets=(composed.loha("w", (4, 6)),)), tmp_path / "base.safetensors", tmp_path / "out.safetensors"
        )
    assert "stores it transposed" in str(refused.value.findings[0])
