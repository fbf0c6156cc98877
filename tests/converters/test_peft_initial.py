"""PiSSA with the factors it began with beside it: the change of the base as people have it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model
from peft_adapters import edit_saved
from torch import nn

from lora_registry.adapter import Adapter
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.writer import encode_adapter
from lora_registry.ops.arrays import to_array
from lora_registry.ops.change import delta

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@pytest.fixture
def pissa(tmp_path: Path) -> tuple[nn.Module, PeftModel, Path]:
    """The base as it was, a trained PiSSA model, and its folder as LLaMA-Factory leaves it; PEFT's ``plain`` beside."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    base = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    base.load_state_dict(before.state_dict())
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["0", "1"], init_lora_weights="pissa", rank_pattern={"1": 1})
    wrapped = get_peft_model(base, config)
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "out" / "pissa_init")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "out")
    initial = str(tmp_path / "out" / "pissa_init")
    wrapped.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=initial)
    return before, wrapped, tmp_path / "out"


def test_the_change_is_relative_to_the_base_as_it_was(pissa: tuple[nn.Module, PeftModel, Path]) -> None:
    """Base and change give what PEFT's model has, which sits on another base; the initial ranks are counted."""
    before, wrapped, folder = pissa
    adapter, report = converter.read(folder)
    encode_adapter(adapter)
    merged = wrapped.merge_and_unload()
    for name, rank in (("0.weight", 2), ("1.weight", 1)):
        target = adapter.target(name)
        assert (target.rank, target.initial) == (2 * rank, rank)
        wanted = merged.get_parameter(name) - before.get_parameter(name)
        np.testing.assert_allclose(delta(target), wanted.detach().numpy(), atol=1e-5)
    assert any("'pissa'" in entry.reason for entry in report.entries)


def test_the_factors_are_those_of_peft_s_conversion(pissa: tuple[nn.Module, PeftModel, Path], tmp_path: Path) -> None:
    """Bit for bit; and what is written for PEFT is that plain LoRA."""
    _, _, folder = pissa
    adapter, _ = converter.read(folder)
    theirs, _ = converter.read(tmp_path / "plain")
    assert changes(adapter) == changes(theirs)
    report = converter.write(adapter, tmp_path / "again")
    assert "how many ranks are initial" in {entry.subject for entry in report.losses}
    assert "origin" not in {entry.subject for entry in report.losses}
    config = json.loads((tmp_path / "again" / CONFIG).read_text())
    assert config["init_lora_weights"] is True
    assert changes(converter.read(tmp_path / "again")[0]) == changes(adapter)


def changes(adapter: Adapter) -> dict[str, tuple[float, bytes, bytes]]:
    return {
        target.name: (target.scale, *(to_array(target.tensors[role]).tobytes() for role in "AB")) for target in adapter
    }


def test_without_the_beginning_it_is_refused(pissa: tuple[nn.Module, PeftModel, Path]) -> None:
    """The adapter alone says nothing of the base as people have it (P-045)."""
    _, _, folder = pissa
    (folder / "pissa_init").rename(folder / "elsewhere")
    with pytest.raises(UnsupportedError, match="pissa"):
        converter.read(folder)


def test_a_beginning_that_is_none_is_refused(pissa: tuple[nn.Module, PeftModel, Path]) -> None:
    """An initial adapter that itself changed a base is the beginning of nothing, even with another one in it."""
    _, _, folder = pissa
    (folder / "pissa_init" / "pissa_init").symlink_to(folder / "pissa_init")
    path = folder / "pissa_init" / CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": "pissa"}))
    with pytest.raises(UnsupportedError, match="pissa"):
        converter.read(folder)


@pytest.mark.parametrize("name", ["pissa_init", "pissa_backup"])
def test_folders_that_call_themselves_plain_are_refused(name: str, pissa: tuple[nn.Module, PeftModel, Path]) -> None:
    """LLaMA-Factory saves both with ``init_lora_weights`` true; only the names tell that they are PiSSA's."""
    _, wrapped, folder = pissa
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(folder / "pissa_backup")
    with pytest.raises(UnsupportedError, match="keeps it for the base without its initial factors"):
        converter.read(folder / name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda tensors, _: [tensors.pop(key) for key in list(tensors) if ".1." in key], "in one of the adapter and"),
        (lambda _, config: config.update(lora_alpha=4), "another scale than in pissa_init"),
        (
            lambda tensors, _: tensors.update({key: array.astype(np.float16) for key, array in tensors.items()}),
            "another type of A",
        ),
    ],
)
def test_a_beginning_of_another_adapter_is_refused(
    edit: Callable[[Any, Any], Any], message: str, pissa: tuple[nn.Module, PeftModel, Path]
) -> None:
    """Other modules, another scale, other element types: the difference would be no difference."""
    _, _, folder = pissa
    initial = folder / "pissa_init"
    edit_saved(initial, edit)
    with pytest.raises(InvalidInputError) as refused:
        converter.read(folder)
    assert any(message in str(finding) for finding in refused.value.findings)
