"""Activated LoRA: PEFT's invocation tokens are the gate, both ways, and mean what the format says of a gate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel
from peft_adapters import make_peft_adapter
from safetensors.numpy import load_file

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter

TOKENS = [5, 7]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Made = tuple[PeftModel, Path]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """A function from options of a config to an activated LoRA on a tiny decoder, and its folder."""

    def made(**options: Any) -> Made:
        config = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        config |= {"alora_invocation_tokens": TOKENS, **options}
        folder = tmp_path / "peft"
        return make_peft_adapter(tiny_models.MODELS["llama-untied"](), LoraConfig(**config), folder), folder

    return made


def test_there_and_back(make: Callable[..., Made], tmp_path: Path) -> None:
    """The same keys and bytes, the same config, and the gate in between."""
    _, folder = make()
    adapter, report = converter.read(folder)
    assert adapter.gate == (5, 7)
    assert not report.losses
    write_adapter(adapter, tmp_path / "a.loreg.safetensors")
    converter.write(read_adapter(tmp_path / "a.loreg.safetensors"), tmp_path / "again")
    before, after = load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert {key: array.tobytes() for key, array in before.items()} == {k: a.tobytes() for k, a in after.items()}
    assert json.loads((folder / CONFIG).read_text()) == json.loads((tmp_path / "again" / CONFIG).read_text())


def test_the_gate_opens_at_the_last_occurrence(make: Callable[..., Made], tmp_path: Path) -> None:
    """PEFT leaves every position before the start of the last occurrence as the base has it, and no other."""
    _, folder = make()
    adapter, _ = converter.read(folder)
    converter.write(adapter, tmp_path / "again")
    again = PeftModel.from_pretrained(tiny_models.MODELS["llama-untied"](), tmp_path / "again").eval()
    base = tiny_models.MODELS["llama-untied"]().eval()
    ids = torch.tensor([[5, 7, 20, 21, 5, 7, 22, 23], [5, 20, 7, 21, 22, 23, 24, 25]])
    with torch.no_grad():
        got, plain = again(input_ids=ids).logits, base(input_ids=ids).logits
    same = torch.isclose(got, plain, atol=1e-6).all(dim=-1)
    assert same[0].tolist() == [True] * 4 + [False] * 4  # the second 5, 7 begins at position 4
    assert same[1].all()  # 5 and 7, but not one after the other


def test_a_gate_of_another_origin_is_written(tmp_path: Path) -> None:
    """An adapter that never was PEFT's, or whose gate was changed, gets the tokens that it has now."""
    target = Target(
        name="model.layers.0.self_attn.q_proj.weight",
        kind=Kind.LINEAR,
        layout=("out", "in"),
        shape=(64, 48),
        tensors={"A": Tensor("F32", (1, 48), bytes(192)), "B": Tensor("F32", (64, 1), bytes(256))},
    )
    converter.write(Adapter(targets=(target,), gate=(1, 2, 3)), tmp_path / "fresh")
    assert json.loads((tmp_path / "fresh" / CONFIG).read_text())["alora_invocation_tokens"] == [1, 2, 3]
    read, _ = converter.read(tmp_path / "fresh")
    assert read.gate == (1, 2, 3)
    for name, gate in (("other", (9,)), ("none", ())):
        converter.write(replace(read, gate=gate), tmp_path / name)
        assert converter.read(tmp_path / name)[0].gate == gate


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight.*applies this value always"),
        ({"trainable_token_indices": [1, 2]}, "embed_tokens.weight.*applies this value always"),
    ],
)
def test_what_is_on_beside_the_gate_is_refused(
    make: Callable[..., Made], options: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    """PEFT puts saved modules and trained rows in place at once; a gate is for all of an adapter or for none."""
    _, folder = make(**options)
    with pytest.raises(UnsupportedError) as refused:
        converter.read(folder)
    assert any(re.search(reason, str(finding)) for finding in refused.value.findings)


def test_a_gate_on_what_peft_cannot_switch_is_not_written(tmp_path: Path) -> None:
    """PEFT refuses activated LoRA on embeddings and kernels, so the folder would be of no use."""
    table = Target(
        name="model.embed_tokens.weight",
        kind=Kind.EMBEDDING,
        layout=("in", "out"),
        shape=(99, 48),
        tensors={"A": Tensor("F32", (1, 99), bytes(396)), "B": Tensor("F32", (48, 1), bytes(192))},
    )
    with pytest.raises(UnsupportedError, match="takes linear layers only"):
        converter.write(Adapter(targets=(table,), gate=(1,)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tokens", ["5 7", [5, -1], [5, 7.5], {"a": 1}])
def test_tokens_that_are_no_ids_are_broken(make: Callable[..., Made], tokens: Any) -> None:
    """Only a list of ids is a gate."""
    _, folder = make()
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "alora_invocation_tokens": tokens}))
    with pytest.raises(InvalidInputError) as refused:
        converter.read(folder)
    assert "alora_invocation_tokens" in refused.value.findings[0].place


def test_no_tokens_are_no_gate(make: Callable[..., Made]) -> None:
    """An empty list is PEFT's plain LoRA, as null is (``resolve_lora_variant`` asks whether it is truthy)."""
    wrapped, folder = make(alora_invocation_tokens=[])
    assert converter.read(folder)[0].gate == ()
    assert not any(layer.lora_variant for layer in wrapped.modules() if hasattr(layer, "lora_variant"))
