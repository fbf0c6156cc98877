"""PEFT's LoHa and LoKr: read to the change that PEFT computes, or refused by name; never written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loreg_converters.peft import converter
from peft import LoHaConfig, LoKrConfig, PeftModel, get_peft_model
from peft.tuners.lycoris_utils import LycorisLayer
from peft_adapters import edit_saved
from safetensors.numpy import load_file, save_file
from torch import nn

from lora_registry.adapter import Adapter, Kind
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.ops.change import delta

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LoHa, LoKr = LoHaConfig, LoKrConfig
Save = Callable[..., tuple[PeftModel, Path]]


class Layers(nn.Module):
    """Two matrices, two kernels and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(24, 36), nn.Linear(36, 24)
        self.conv, self.line, self.head = nn.Conv2d(8, 12, (3, 2)), nn.Conv1d(6, 12, 3), nn.Linear(24, 3)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """A function from a config class and its options to a random adapter and its folder."""

    def saved(config: type[LoHaConfig | LoKrConfig], **options: Any) -> tuple[PeftModel, Path]:
        torch.manual_seed(0)
        folder = tmp_path / "peft"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = get_peft_model(Layers(), config(init_weights=False, **options))
            wrapped.save_pretrained(folder)
        return wrapped, folder

    return saved


CASES: list[tuple[type[LoHaConfig | LoKrConfig], dict[str, Any]]] = [
    (LoHa, {"r": 4, "alpha": 6, "target_modules": ["one", "two"]}),
    (LoHa, {"r": 3, "alpha": 7, "target_modules": r".*(one|conv|line)"}),
    (LoHa, {"r": 4, "alpha": 6, "target_modules": ["one", "two"], "rank_pattern": {"two": 2}}),
    (LoHa, {"r": 4, "alpha": 6, "target_modules": ["one", "two"], "alpha_pattern": {"^one": 5}}),
    (LoKr, {"r": 1, "alpha": 6, "target_modules": ["one", "two", "conv", "line"]}),
    (LoKr, {"r": 16, "alpha": 6, "target_modules": ["one", "two", "conv"]}),
    (LoKr, {"r": 1, "alpha": 3, "target_modules": ["one", "conv"], "decompose_both": True}),
    (LoKr, {"r": 4, "alpha": 3, "target_modules": ["one", "two"], "decompose_factor": 4}),
]


@pytest.mark.parametrize(("config", "options"), CASES)
def test_the_change_is_that_of_peft(
    config: type[LoHaConfig | LoKrConfig], options: dict[str, Any], save: Save, tmp_path: Path
) -> None:
    """By way of a native file, every module changes as ``get_delta_weight`` says; flattened kernels stay flat."""
    wrapped, folder = save(config, **options)
    adapter, report = converter.read(folder)
    assert not report.losses
    assert any(entry.subject == "layouts" for entry in report.entries)
    write_adapter(adapter, tmp_path / "a.loreg.safetensors")
    adapter = read_adapter(tmp_path / "a.loreg.safetensors")
    layers = {
        f"{path}.weight": layer
        for path, layer in wrapped.base_model.model.named_modules()
        if isinstance(layer, LycorisLayer)
    }
    assert {target.name for target in adapter} == layers.keys()
    for target in adapter:
        assert target.kind.value == ("loha" if config is LoHa else "lokr")
        theirs = layers[target.name].get_delta_weight("default").detach().numpy()
        assert target.shape in (theirs.shape, (len(theirs), theirs[0].size))
        change = delta(target).reshape(theirs.shape)
        np.testing.assert_allclose(change, theirs, rtol=1e-4, atol=1e-6 * np.abs(theirs).max())


def test_kernels_that_the_file_shows_are_kernels(save: Save) -> None:
    """A second side of LoKr that is whole has its kernel."""
    _, folder = save(LoKr, r=16, alpha=6, target_modules=["conv"])
    adapter, report = converter.read(folder)
    assert adapter.target("conv.weight").layout == ("out", "in", "k", "k")
    assert not any(entry.subject == "layouts" for entry in report.entries)


def test_saved_modules_come_along(save: Save) -> None:
    """``modules_to_save`` are whole targets here too."""
    _, folder = save(LoHa, r=2, target_modules=["one"], modules_to_save=["head"])
    adapter, _ = converter.read(folder)
    assert {target.name: target.kind for target in adapter} == {
        "one.weight": Kind.LOHA,
        "head.weight": Kind.FULL,
        "head.bias": Kind.FULL,
    }


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        (LoHa, {"target_modules": ["conv"], "use_effective_conv2d": True}, "hada_t1: a Tucker core"),
        (LoKr, {"r": 1, "target_modules": ["conv"], "use_effective_conv2d": True}, "lokr_t2: a Tucker core"),
        (LoKr, {"r": 16, "target_modules": ["line"]}, "PEFT mixes its kernel with the inputs"),
    ],
)
def test_what_is_no_product_is_refused_by_name(
    config: type[LoHaConfig | LoKrConfig], options: dict[str, Any], reason: str, save: Save
) -> None:
    """Tucker cores, and the kernel that PEFT lines up with the wrong axis."""
    _, folder = save(config, **options)
    with pytest.raises(UnsupportedError) as refused:
        converter.read(folder)
    assert reason in str(refused.value.findings[0])


def test_the_shape_of_peft_for_a_whole_kernel_in_one_dimension_is_another(save: Save) -> None:
    """Why it is refused: PEFT's change is not the Kronecker product over outputs and inputs."""
    wrapped, _ = save(LoKr, r=16, target_modules=["line"])
    layer = wrapped.base_model.model.line
    one, two = (getattr(layer, name)["default"].detach().numpy() for name in ("lokr_w1", "lokr_w2"))
    theirs = layer.get_delta_weight("default").detach().numpy() / layer.scaling["default"]
    product = np.einsum("ab,cdk->acbdk", one, two).reshape(theirs.shape)
    assert not np.allclose(theirs, product)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors, _: tensors.pop("base_model.model.one.hada_w1_a"), "are not the tensors of loha"),
        (lambda _, config: config.update(r=5), "rank 4 in the tensors, 5 in the config"),
        (lambda _, config: config.update(target_modules=["two"]), "target_modules does not name it"),
        (lambda _, config: config.update(peft_type="LOKR"), "are not the tensors of lokr"),
        (lambda _, config: config.update(r=0), "no positive rank"),
        (lambda _, config: config.update(alpha="6"), "no finite number"),
        (lambda _, config: config.update(use_dora=True), "unknown field 'use_dora'"),
        (lambda tensors, _: tensors.update({"x.lora_A.weight": np.zeros((1, 1), "f4")}), "no rule knows this key"),
        (lambda tensors, _: tensors.update({"base_model.model.x.weight": np.zeros(1, "f4")}), "no rule knows this key"),
        (lambda tensors, _: tensors.clear(), "there is no tensor"),
        (
            lambda tensors, _: tensors.update({"base_model.model.one.hada_w2_b": np.zeros((4, 23), "f4")}),
            "different shapes",
        ),
        (
            lambda tensors, _: tensors.update({"base_model.model.one.hada_w1_a.default": np.zeros((36, 4), "f4")}),
            "is there twice",
        ),
        (
            lambda tensors, _: tensors.update({"base_model.model.one.hada_w2_b": np.zeros((4, 24, 1), "f4")}),
            "tensors of shapes",
        ),
    ],
)
def test_broken_files_are_refused(edit: Callable[[Any, Any], Any], message: str, save: Save) -> None:
    """Whatever PEFT would compute something else from, or leave out in silence."""
    _, folder = save(LoHa, r=4, alpha=6, target_modules=["one"])
    edit_saved(folder, edit)
    with pytest.raises(InvalidInputError) as refused:
        converter.read(folder)
    assert any(message in str(finding) for finding in refused.value.findings)


def test_names_of_adapters_in_keys_are_stripped(save: Save) -> None:
    """As other saves leave them; the report says so."""
    _, folder = save(LoHa, r=4, target_modules=["one"])
    plain, _ = converter.read(folder)
    tensors = {f"{key}.default": array for key, array in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS)
    named, report = converter.read(folder)
    assert content_digest(named) == content_digest(plain)
    assert any(".default." in entry.reason for entry in report.entries)


def test_they_are_not_written(save: Save, tmp_path: Path) -> None:
    """PEFT's LoRA has no such kinds, and the writer names what is missing."""
    _, folder = save(LoHa, r=4, target_modules=["one"])
    adapter: Adapter = converter.read(folder)[0]
    with pytest.raises(UnsupportedError, match="requires loha, which PEFT's LoRA cannot say"):
        converter.write(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()
