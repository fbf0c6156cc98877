"""The config: what changes the meaning is understood or refused by name, never dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from loreg_converters._peft.config import KNOWN
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.peft_types import PeftType
from torch import nn

from lora_registry.adapter import Target
from lora_registry.convert.report import Outcome
from lora_registry.errors import InvalidInputError, UnsupportedError

Edit = Callable[..., None]
Adapt = Callable[..., tuple[PeftModel, Path]]


def test_every_field_of_this_peft_is_classified() -> None:
    """No field that the installed PEFT saves is unknown to the reader."""
    assert set(LoraConfig().to_dict()) <= KNOWN


def test_default_values_are_plain(saved: Path) -> None:
    """What PEFT saves for an ordinary LoRA is read without a loss, and recorded as it was."""
    adapter, report = converter.read(saved)
    assert report.losses == ()
    assert adapter.origin["version"] == peft.__version__
    config = json.loads((saved / "adapter_config.json").read_text())
    assert adapter.origin["config"] == {
        key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")
    }


@pytest.mark.parametrize("kind", sorted(set(PeftType) - {PeftType.LORA, PeftType.LOHA, PeftType.LOKR}))
def test_other_methods_are_refused_by_name(saved: Path, edit: Edit, kind: PeftType) -> None:
    """AdaLoRA, IA3, prompt tuning and the rest are no sum of products."""
    edit(saved, peft_type=kind.value)
    with pytest.raises(UnsupportedError, match=f"PEFT type '{kind.value}' is neither LoRA, LoHa nor LoKr"):
        converter.read(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_qalora", True),
        ("layer_replication", [[0, 4], [2, 5]]),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"beta": 0.1}),
        ("megatron_config", {"tensor_model_parallel_size": 2}),
        ("enable_lora", [True, False, True]),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_16"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("init_lora_weights", "some_new_one"),
        ("use_new_variant", True),
        ("new_factor", 0.5),
    ],
)
def test_what_changes_the_meaning_is_refused_by_name(saved: Path, edit: Edit, field: str, value: Any) -> None:
    """Variants, initializations that change the base, and unknown fields that are switched on."""
    edit(saved, **{field: value})
    with pytest.raises(UnsupportedError, match=field):
        converter.read(saved)


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal", "mica"])
def test_other_initializations_leave_a_plain_lora(saved: Path, edit: Edit, init: Any) -> None:
    """These only set the starting point; the base stays as it is."""
    edit(saved, init_lora_weights=init)
    assert converter.read(saved)[1].losses == ()


def test_pissa_saved_as_a_plain_lora_is_read(tmp_path: Path, delta: Callable[[Target], np.ndarray]) -> None:
    """path_initial_model_for_weight_conversion doubles the rank and marks the init as plain; that is exact."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(6, 5))
    weight = base[0].weight.detach().clone()
    wrapped = get_peft_model(base, LoraConfig(r=2, target_modules=["0"], init_lora_weights="pissa"))
    wrapped.peft_config["default"].init_lora_weights = True
    wrapped.save_pretrained(tmp_path / "initial")
    wrapped.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    wrapped.save_pretrained(tmp_path / "raw")
    wrapped.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    with pytest.raises(UnsupportedError, match="pissa"):
        converter.read(tmp_path / "raw")
    target = converter.read(tmp_path / "plain")[0].target("0.weight")
    assert target.rank == 4
    merged = wrapped.merge_and_unload()[0].weight.detach()
    np.testing.assert_allclose(delta(target), (merged - weight).numpy(), atol=1e-5)


def test_several_refusals_are_told_at_once(saved: Path, edit: Edit) -> None:
    """All reasons, not the first."""
    edit(saved, use_qalora=True, kasa_config={"beta": 1}, mystery=7)
    with pytest.raises(UnsupportedError) as caught:
        converter.read(saved)
    assert len(caught.value.findings) == 3


def test_unknown_field_that_is_off_is_kept_and_told(saved: Path, edit: Edit) -> None:
    """A newer PEFT's field at null or false is no reason to refuse."""
    edit(saved, from_the_future=None)
    adapter, report = converter.read(saved)
    assert [(entry.outcome, entry.subject) for entry in report.entries] == [(Outcome.KEPT, "from_the_future")]
    assert adapter.origin["config"]["from_the_future"] is None


@pytest.mark.parametrize("variant", ["velora_config", "monteclora_config"])
def test_training_only_variants_are_read_and_their_state_reported(adapt: Adapt, variant: str) -> None:
    """VeLoRA and MonteCLoRA act in training alone; their buffers are dropped by name."""
    options = {"velora_config": {"num_groups": 5}, "monteclora_config": {"num_samples": 2}}
    _, folder = adapt("MLP", target_modules=["lin0"], **{variant: options[variant]})
    _, report = converter.read(folder)
    assert report.losses[0].subject == variant
    assert all(variant.partition("_")[0] in entry.subject for entry in report.losses)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"peft_type": "LORA", "r": 8, "r": 16}', "'r' stands twice"),
        ('{"peft_type": "LORA", "lora_alpha": NaN}', "NaN is not JSON"),
        ('{"peft_type": "LORA", "lora_alpha": 1e999}', "beyond float64"),
        ('{"peft_type": "LORA", "lora_alpha": "16"}', "lora_alpha: '16' is no finite number"),
        ('{"peft_type": "LORA", "r": 0}', "r: 0 is no positive rank"),
        ('{"peft_type": "LORA", "r": true}', "r: True is no positive rank"),
        ('{"peft_type": "LORA", "rank_pattern": {"q": -1}}', "rank_pattern/q: -1"),
        ('{"peft_type": "LORA", "alpha_pattern": []}', "alpha_pattern: is no object"),
        ('{"peft_type": "LORA", "use_rslora": 1}', "use_rslora: 1 is neither"),
        ('{"peft_type": "LORA", "target_modules": 3}', "target_modules: is no list"),
        ('{"peft_type": "LORA", "bias": "some"}', "'some' is not none, all or lora_only"),
        ('{"peft_type": "LORA", "trainable_token_indices": {"e": [-1]}}', "is no list of token numbers"),
        ('{"peft_type": "LORA", "peft_version": 1}', "peft_version: 1 is no string"),
        ('["peft_type"]', "no adapter_config|no JSON object"),
        ('{"peft_type": "LORA"', "not JSON"),
    ],
)
def test_broken_configs_are_invalid(saved: Path, text: str, reason: str) -> None:
    """Duplicate keys, NaN, infinities and wrong types are one clear line each."""
    (saved / "adapter_config.json").write_text(text)
    with pytest.raises(InvalidInputError, match=reason) as caught:
        converter.read(saved)
    assert "\n" not in str(caught.value)


def test_local_paths_in_other_fields_are_not_recorded(saved: Path, edit: Edit) -> None:
    """A path hidden in a sub-config is dropped with its field (P-039)."""
    edit(saved, eva_config={"cache": "/home/jo/eva"})
    adapter, report = converter.read(saved)
    assert [entry.subject for entry in report.losses] == ["eva_config"]
    assert "/home/jo" not in str(adapter.origin)


def test_hostile_pattern_does_not_hang(saved: Path, edit: Edit) -> None:
    """A pattern that takes re 2**n steps is matched in linear time; look-around is refused by name."""
    edit(saved, rank_pattern={"(([a-z0-9])+.)+[A-Z]([a-z0-9])+$": 3, "(a|a)*" * 20 + "b": 2})
    assert converter.read(saved)[0].ranks == (4,)
    edit(saved, rank_pattern={"(?!lin0).*": 3})
    with pytest.raises(UnsupportedError, match="look-around"):
        converter.read(saved)
    edit(saved, rank_pattern={"((x{1,900}){1,900}){1,900}": 3})
    with pytest.raises(UnsupportedError, match="states"):
        converter.read(saved)


def test_names_without_tensors_are_told(saved: Path, edit: Edit) -> None:
    """A target that matched nothing is unchanged, in PEFT and here, and stands in the report."""
    edit(saved, target_modules=["lin0", "lin1", "gate_proj"], modules_to_save=["score"])
    _, report = converter.read(saved)
    assert [(entry.outcome, entry.subject) for entry in report.entries] == [
        (Outcome.DERIVED, "gate_proj"),
        (Outcome.DERIVED, "score"),
    ]
