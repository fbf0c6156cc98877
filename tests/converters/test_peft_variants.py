"""Variants of LoRA that PEFT lays out in a way of its own: block-diagonal factors, and attention that counts twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model
from peft_adapters import edit_saved, peft_warnings_off
from torch import nn

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.convert.report import Outcome
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.identity import content_digest
from lora_registry.ops.arrays import to_array


class Two(nn.Module):
    """Two linear layers and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(12, 6), nn.Linear(6, 8)
        self.mha = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.up(self.down(x))
        mixed: torch.Tensor = self.mha(h, h, h)[0]
        return mixed


def saved(folder: Path, **settings: Any) -> tuple[PeftModel, Path]:
    """An adapter as PEFT saves it, every factor random."""
    torch.manual_seed(0)
    with peft_warnings_off():
        wrapped = get_peft_model(Two(), LoraConfig(init_lora_weights=False, **settings))
        wrapped.save_pretrained(folder)
    return wrapped.eval(), folder


BLOCKS = {
    "r": 4,
    "lora_alpha": 6,
    "target_modules": ["down", "up"],
    "use_bdlora": {"target_modules_bd_a": ["down"], "target_modules_bd_b": ["up"], "nblocks": 2},
}


def test_blocks_of_a_diagonal_get_their_zeros(tmp_path: Path) -> None:
    """A of one module and B of the other hold half of a matrix; with the zeros they are plain, and it is said."""
    wrapped, folder = saved(tmp_path, **BLOCKS)
    adapter, report = converter.read(folder)
    shapes = {
        target.name: [target.tensors[role].shape for role in "AB"] for target in adapter if target.kind is Kind.LINEAR
    }
    assert shapes == {"down.weight": [(4, 12), (6, 4)], "up.weight": [(4, 6), (8, 4)]}
    layers = wrapped.base_model.model
    a, b = (to_array(adapter.target(f"{name}.weight").tensors[role]) for name, role in (("down", "A"), ("up", "B")))
    assert np.array_equal(a, layers.down.lora_A["default"].weight_as_blockdiagonal_matrix().detach())
    assert np.array_equal(b, layers.up.lora_B["default"].weight_as_blockdiagonal_matrix().detach())
    derived = {entry.subject for entry in report.entries if "use_bdlora" in entry.reason}
    assert derived == {"down.weight", "up.weight"}
    assert "use_bdlora" not in adapter.origin["config"]  # type: ignore[operator]


def test_block_diagonal_factors_are_written_as_plain_ones(tmp_path: Path) -> None:
    """PEFT loads what comes back as plain LoRA, to the same outputs."""
    wrapped, folder = saved(tmp_path / "blocks", **BLOCKS)
    adapter, _ = converter.read(folder)
    converter.write(adapter, tmp_path / "plain")
    torch.manual_seed(0)
    again = PeftModel.from_pretrained(Two(), tmp_path / "plain").eval()
    assert not again.peft_config["default"].use_bdlora
    x = torch.randn(2, 3, 12)
    assert torch.allclose(again(x), wrapped(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"nblocks": 0}, "nblocks is 0"),
        ({"nblocks": 257}, "nblocks is 257, not from 1 to 256"),
        ({"nblocks": True}, "nblocks is True"),
        ({"nblocks": 3}, r"A of shape \[4, 6\] does not hold 3 blocks"),
        ({"target_modules_bd_a": "down"}, "target_modules_bd_a is no list"),
        ({"target_modules_bd_b": ["up", "down"]}, "choose its A and its B"),
        ({"permuted": True}, "unknown fields permuted"),
    ],
)
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    """Numbers, texts and fields that say something else than the tensors."""
    _, folder = saved(tmp_path, **BLOCKS)

    def edit(tensors: dict[str, Any], config: dict[str, Any]) -> None:
        config["use_bdlora"] |= change

    edit_saved(folder, edit)
    with pytest.raises(InvalidInputError, match=said):
        converter.read(folder)


@pytest.mark.parametrize("off", [None, False, {}])
def test_no_blocks_are_plain_factors(tmp_path: Path, off: Any) -> None:
    """However the field is switched off."""
    _, folder = saved(tmp_path, target_modules=["down"])
    edit_saved(folder, lambda tensors, config: config.update(use_bdlora=off))
    assert converter.read(folder)[0].target("down.weight").rank == 8


@pytest.mark.parametrize("value", [True, ["down"], "down"])
def test_blocks_are_an_object(tmp_path: Path, value: Any) -> None:
    """Nothing else says how many there are."""
    _, folder = saved(tmp_path, target_modules=["down"])
    edit_saved(folder, lambda tensors, config: config.update(use_bdlora=value))
    with pytest.raises(InvalidInputError, match="use_bdlora: is no object"):
        converter.read(folder)


def of_attention(folder: Path) -> Adapter:
    """What the converter reads."""
    return converter.read(folder)[0]


def test_the_change_of_out_proj_counts_twice(tmp_path: Path) -> None:
    """As PEFT runs it; the other projection counts once, and the bytes come back with the config as it was."""
    _, folder = saved(tmp_path / "a", r=2, lora_alpha=3, target_modules=["mha"])
    adapter, report = converter.read(folder)
    assert {target.name: target.scale for target in adapter} == {
        "mha.in_proj_weight": 1.5,
        "mha.out_proj.weight": 3.0,
    }
    [told] = [entry for entry in report.entries if entry.subject == "mha.out_proj.weight"]
    assert told.outcome is Outcome.DERIVED
    converter.write(adapter, tmp_path / "b")
    assert content_digest(of_attention(tmp_path / "b")) == content_digest(adapter)


@pytest.mark.parametrize("version", ["0.21.3", "0.22.0.dev0", "1.0", "main"])
def test_attention_of_a_peft_that_nobody_looked_at_is_refused(tmp_path: Path, version: str) -> None:
    """A later release has that mended one day; then it counts once."""
    _, folder = saved(tmp_path, target_modules=["mha"])
    edit_saved(folder, lambda tensors, config: config.update(peft_version=version))
    with pytest.raises(UnsupportedError, match="adds the change of out_proj twice"):
        converter.read(folder)


@pytest.mark.parametrize("version", [None, "0.12.0", "0.21.2", "0.21.2.dev0"])
def test_every_peft_until_now_adds_it_twice(tmp_path: Path, version: str | None) -> None:
    """The first release with attention did, and files from before 0.18 have no version."""
    _, folder = saved(tmp_path, target_modules=["mha"])
    edit_saved(folder, lambda tensors, config: config.update(peft_version=version))
    assert of_attention(folder).target("mha.out_proj.weight").scale == 2.0


def test_a_bias_of_b_that_peft_never_adds_is_refused(tmp_path: Path) -> None:
    """It is saved for in_proj; neither the forward pass nor the merge looks at it. Nor is one written."""
    _, folder = saved(tmp_path / "a", target_modules=["mha"], lora_bias=True)
    with pytest.raises(UnsupportedError, match=r"mha\.in_proj_bias: PEFT saves a bias of B for in_proj and never adds"):
        converter.read(folder)
    _, folder = saved(tmp_path / "b", target_modules=["mha"])
    adapter = of_attention(folder)
    delta = Tensor("F32", (24,), bytes(96))
    bias = Target(
        name="mha.in_proj_bias", kind=Kind.BIAS, layout=("out",), shape=(24,), tensors={"delta": delta}, scale=1.0
    )
    with pytest.raises(UnsupportedError, match="never adds a bias of B"):
        converter.write(replace(adapter, targets=(*adapter.targets, bias)), tmp_path / "c")
