"""Reading PEFT: the change that a target describes is the change that PEFT makes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from loreg_converters.peft import converter
from peft import PeftModel
from peft.tuners.lora.layer import LoraLayer, MultiheadAttention, ParamWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_registry.adapter import Kind, Target
from lora_registry.convert.report import Outcome
from lora_registry.errors import InvalidInputError, NotFoundError, UnsupportedError

Adapt = Callable[..., tuple[PeftModel, Path]]


def layers(wrapped: PeftModel) -> dict[str, LoraLayer]:
    """Name of the base tensor to the LoRA layer on it."""
    found = {}
    for path, module in wrapped.base_model.model.named_modules():
        if isinstance(module, ParamWrapper):
            found[f"{path.replace('.base_layer', '')}.{module.parameter_name}"] = module
        elif isinstance(module, MultiheadAttention):
            found[f"{path}.in_proj_weight"] = module
        elif isinstance(module, LoraLayer):
            found[f"{path.replace('.base_layer', '')}.weight"] = module
    return found


def test_change_is_what_peft_computes(case: tuple[PeftModel, Path], delta: Callable[[Target], np.ndarray]) -> None:
    """For every target, shape, layout, scale and s·B·A equal those of PEFT's layer, computed in float64 (P-033)."""
    wrapped, folder = case
    adapter, _ = converter.read(folder)
    expected = layers(wrapped)
    low_rank = {target.name: target for target in adapter if target.rank is not None}
    assert low_rank.keys() == expected.keys()
    base = dict(wrapped.get_base_model().named_parameters())
    for name, target in low_rank.items():
        layer = expected[name]
        times = 2 if name == "mha.out_proj.weight" else 1  # PEFT adds it twice; tests/merge/test_peft_cases.py shows it
        assert target.scale == times * layer.scaling["default"]
        assert target.rank == layer.r["default"]
        inner = layer.get_base_layer()
        weight = layer.get_param() if isinstance(layer, ParamWrapper) else getattr(inner, name.rpartition(".")[2])
        assert target.shape == tuple(weight.shape)
        if isinstance(inner, Conv1D | nn.Linear) and weight.dim() == 2 and not isinstance(layer, ParamWrapper):
            assert target.layout == (("in", "out") if isinstance(inner, Conv1D) else ("out", "in"))
        if target.groups > 1:
            continue  # PEFT has no delta weight for grouped convolutions; the round trip covers their meaning
        wanted = times * layer.double().get_delta_weight("default")
        layer.float()
        assert weight.dtype is torch.float32
        np.testing.assert_allclose(delta(target).reshape(wanted.shape), wanted.detach().numpy(), rtol=1e-6, atol=1e-7)
    assert base


def test_grouped_convolution_is_what_the_forward_pass_does(adapt: Adapt) -> None:
    """With groups, every group of outputs takes its own share of the ranks, and A sees all inputs."""
    wrapped, folder = adapt("Mixed", target_modules=["grouped"])
    adapter, _ = converter.read(folder)
    target = adapter.target("grouped.weight")
    assert (target.groups, target.shape) == (2, (4, 2, 3, 3))
    a, b = (torch.frombuffer(bytearray(target.tensors[role].data), dtype=torch.float32) for role in "AB")
    a, b = a.reshape(target.tensors["A"].shape), b.reshape(target.tensors["B"].shape)
    x = torch.rand(1, 4, 8, 8)
    layer = wrapped.base_model.model.grouped
    share = target.rank // target.groups
    hidden = nn.functional.conv2d(x, a)
    outputs = [
        nn.functional.conv2d(hidden[:, g * share : (g + 1) * share], b[g * 2 : (g + 1) * 2])
        for g in range(target.groups)
    ]
    change = layer(x) - layer.base_layer(x)
    torch.testing.assert_close(torch.cat(outputs, 1) * target.scale, change, rtol=1e-4, atol=1e-5)


def test_other_kinds_hold_the_trained_values(adapt: Adapt) -> None:
    """modules_to_save and bias are full replacements, lora_bias a scaled delta, tokens the rows themselves."""
    wrapped, folder = adapt("MLP", target_modules=["lin0"], modules_to_save=["lin1"], lora_bias=True)
    adapter, _ = converter.read(folder)
    assert adapter.target("lin0.bias").kind is Kind.BIAS
    assert adapter.target("lin0.bias").scale == 1.5
    value = adapter.target("lin1.weight")
    assert (value.kind, value.shape) == (Kind.FULL, (2, 20))
    trained = wrapped.base_model.model.lin1.modules_to_save["default"].weight
    assert bytes(value.tensors["value"].data) == trained.detach().numpy().tobytes()


def test_token_rows_are_replaced_not_added(adapt: Adapt) -> None:
    """PEFT's tensor called delta is the new rows; the row numbers come from the config, ascending here."""
    wrapped, folder = adapt("Mixed", target_modules=["lin"], trainable_token_indices={"wte": [5, 1, 3]})
    adapter, report = converter.read(folder)
    target = adapter.target("wte.weight")
    assert (target.kind, target.rows, target.shape) == (Kind.TOKENS, (1, 3, 5), None)
    merged = wrapped.merge_and_unload().wte.weight.detach().numpy()
    assert bytes(target.tensors["value"].data) == merged[[1, 3, 5]].tobytes()
    assert any("ascending" in entry.reason for entry in report.entries)


def test_saved_base_embedding_stands_in_for_the_base(adapt: Adapt, tmp_path: Path) -> None:
    """A base weight that PEFT saves beside an embedding's factors is the value of the same target."""
    from safetensors.torch import load_file, save_file

    wrapped, folder = adapt("Mixed", target_modules=["wte"])
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors["base_model.model.wte.base_layer.weight"] = wrapped.base_model.model.wte.base_layer.weight.detach()
    save_file(tensors, weights, metadata={"format": "pt"})
    adapter, _ = converter.read(folder)
    assert adapter.target("wte.weight").tensors.keys() == {"A", "B", "value"}
    converter.write(adapter, tmp_path / "again")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == tensors.keys()


def test_dora_magnitude_of_a_convolution_is_flat(adapt: Adapt) -> None:
    """PEFT's (1, out, 1, 1) becomes (out,), and the report says so."""
    _, folder = adapt("Mixed", target_modules=["conv2"], use_dora=True)
    adapter, report = converter.read(folder)
    assert adapter.target("conv2.weight").tensors["magnitude"].shape == (4,)
    assert [entry.outcome for entry in report.entries] == [Outcome.KEPT]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("base_model.model.", "base_model.model.base_model.model."),
        ("base_model.model.", "module.base_model.model."),
        ("base_model.model.", "base_model.model._orig_mod."),
        ("base_model.model.", ""),
        ("lora_A.weight", "lora_A.default.weight"),
        ("lora_B.weight", "lora_B.other.weight"),
    ],
)
def test_prefix_soup_is_stripped_and_reported(saved: Path, before: str, after: str) -> None:
    """Prefixes and infixes that wrappers leave behind change nothing but the report."""
    from safetensors.torch import load_file, save_file

    plain, _ = converter.read(saved)
    weights = saved / "adapter_model.safetensors"
    renamed = {key.replace(before, after): tensor for key, tensor in load_file(weights).items()}
    save_file(renamed, weights, metadata={"format": "pt"})
    adapter, report = converter.read(saved)
    assert [target.name for target in adapter] == [target.name for target in plain]
    assert [entry.subject for entry in report.entries] == ["keys"]


def test_reads_either_file_and_named_sub_folders(saved: Path, tmp_path: Path) -> None:
    """The two files of a folder stand for it, and so does a folder around one named adapter."""
    names = [target.name for target in converter.read(saved)[0]]
    for path in (saved / "adapter_config.json", saved / "adapter_model.safetensors"):
        assert converter.sniff(path)
        assert [target.name for target in converter.read(path)[0]] == names
    around = tmp_path / "around"
    shutil.copytree(saved, around / "french")
    adapter, report = converter.read(around)
    assert [target.name for target in adapter] == names
    assert report.entries[0].subject == "french"
    shutil.copytree(saved, around / "german")
    with pytest.raises(UnsupportedError, match="several adapters: french, german"):
        converter.read(around)


def test_the_type_may_stand_behind_a_long_list(saved: Path) -> None:
    """A config with an entry for each of many experts is recognized wherever in it ``peft_type`` stands."""
    config = json.loads((saved / "adapter_config.json").read_bytes())
    kind = config.pop("peft_type")
    long = {
        **config,
        "exclude_modules": [f"model.layers.{index}.mlp.gate" for index in range(50_000)],
        "peft_type": kind,
    }
    (saved / "adapter_config.json").write_text(json.dumps(long))
    assert converter.sniff(saved)


def test_mlx_config_is_not_peft(tmp_path: Path) -> None:
    """MLX writes a file of the same name without peft_type."""
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "lora", "num_layers": 8}')
    assert not converter.sniff(tmp_path)
    with pytest.raises(InvalidInputError, match=r"no adapter_config\.json with a peft_type"):
        converter.read(tmp_path)


def test_missing_tensors_are_named(saved: Path) -> None:
    """A config without tensors is not found, not empty."""
    (saved / "adapter_model.safetensors").unlink()
    with pytest.raises(NotFoundError, match=r"neither adapter_model\.safetensors nor adapter_model\.bin"):
        converter.read(saved)


def test_base_is_recorded_by_name_and_never_by_path(saved: Path, edit: Callable[..., None]) -> None:
    """A hub name and revision become the base; a local path is dropped with the reason."""
    edit(saved, base_model_name_or_path="org/model-7b", revision="abc")
    adapter, report = converter.read(saved)
    assert (adapter.base.name, adapter.base.revision, report.losses) == ("org/model-7b", "abc", ())
    for path in ("/home/jo/model", "../", "./x", "~/m", r"C:\models\x", "a/b/c", "out/checkpoint-500"):
        edit(saved, base_model_name_or_path=path)
        adapter, report = converter.read(saved)
        assert adapter.base.name is None, path
        assert [entry.subject for entry in report.losses] == ["base_model_name_or_path"]
        assert path not in str(adapter.origin)
    assert adapter.origin["format"] == "peft"
