"""Tensors: every key is accounted for, or the adapter is refused with all of them named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from loreg_converters._peft.keys import Part, parse_key
from loreg_converters.peft import converter
from safetensors.torch import load_file, save_file

from lora_registry.errors import InvalidInputError, UnsupportedError

Edit = Callable[..., None]
P = "base_model.model."
ZERO = torch.zeros(1)


def rewrite(folder: Path, add: dict[str, torch.Tensor] | None = None, drop: str = "") -> None:
    """Add and drop tensors of a saved adapter."""
    weights = folder / "adapter_model.safetensors"
    tensors = {key: tensor for key, tensor in load_file(weights).items() if not drop or drop not in key}
    save_file(tensors | (add or {}), weights, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("add", "drop", "reason"),
    [
        ({P + "lin0.mystery": ZERO}, "", r"lin0\.mystery: no rule knows this key"),
        ({P + "lin0.lora_E": ZERO}, "", r"lin0\.lora_E: is a tensor of another method"),
        ({P + "lin0.hada_w1_a": ZERO}, "", "hada_w1_a: is a tensor of another method"),
        ({P + "lin0.lora_diag": ZERO}, "", "lora_diag: is a tensor of another method"),
        ({P + "lin0.lora_velora_embed": ZERO}, "", "training state of a variant"),
        ({}, "lin0.lora_A", r"lin0\.weight: has no A"),
        ({}, "lin1.lora_B", r"lin1\.weight: has no B"),
        ({P + "lin0.lora_magnitude_vector": torch.zeros(20)}, "", "a magnitude, though use_dora is not set"),
        ({P + "lin0.lora_B.bias": torch.zeros(20)}, "", "a bias of B, though lora_bias is not set"),
        ({P + "lin0.lora_A.weight": torch.zeros(3, 10)}, "", "do not share a rank"),
        (
            {P + "lin0.lora_A.weight": torch.zeros(3, 10), P + "lin0.lora_B.weight": torch.zeros(20, 3)},
            "",
            "rank 3 in the tensors, 4 in the config",
        ),
        ({P + "lin0.lora_A.weight": torch.zeros(4)}, "", "factors of shapes"),
        ({P + "lin0.lora_A.weight": torch.zeros(0, 10)}, "", "is empty"),
        ({P + "lin0.lora_embedding_A": torch.zeros(4, 10)}, "", "embedding B|two kinds"),
        ({P + "lin0.base_layer.lora_A.weight": torch.zeros(4, 10)}, "", "nested wrappers"),
        ({P + "lin0.lora_A.default.weight": torch.zeros(4, 10)}, "", "two spellings"),
        ({P + "lin0.base_layer.weight": torch.zeros(3, 3)}, "", "base weight"),
        ({P + "norm.token_adapter.trainable_tokens_delta": torch.zeros(2, 4)}, "", "does not name it"),
    ],
)
def test_tensors_that_do_not_fit_are_named(saved: Path, add: dict[str, torch.Tensor], drop: str, reason: str) -> None:
    """Unknown keys, missing partners, wrong ranks and shapes are findings with the place and the reason."""
    rewrite(saved, add, drop)
    with pytest.raises(InvalidInputError) as caught:
        converter.read(saved)
    assert any(re.search(reason, str(finding)) for finding in caught.value.findings), caught.value.findings


def test_all_problems_are_told(saved: Path) -> None:
    """Three problems, three findings."""
    rewrite(saved, {P + "x.mystery": ZERO, P + "y.mystery": torch.ones(1)}, drop="lin0.lora_A")
    with pytest.raises(InvalidInputError, match=r"\(and 2 more\)") as caught:
        converter.read(saved)
    assert len(caught.value.findings) == 3


def test_module_outside_of_the_targets_is_refused(saved: Path, edit: Edit) -> None:
    """PEFT would leave out, in silence, tensors on modules that the config does not name."""
    edit(saved, target_modules=["lin0"])
    with pytest.raises(InvalidInputError, match=r"lin1.*PEFT would leave its tensors out"):
        converter.read(saved)
    edit(saved, target_modules=r"lin[0]|.*\.lin1")
    with pytest.raises(InvalidInputError, match=r"lin1"):
        converter.read(saved)
    for accepted in (r"lin\d", "all-linear", None, r"(?!x).*"):
        edit(saved, target_modules=accepted)
        assert len(converter.read(saved)[0]) == 2


def test_two_adapters_in_one_file_are_refused(saved: Path) -> None:
    """A file is one adapter."""
    extra = {f"{P}lin{index}.lora_A.{name}.weight": torch.zeros(4, 10) for index, name in enumerate("xy")}
    rewrite(saved, extra, drop="lora_A")
    with pytest.raises(UnsupportedError, match="several adapters in one file: x, y"):
        converter.read(saved)


def test_bias_changed_in_two_ways_is_refused(
    adapt: Callable[..., tuple[object, Path]],
) -> None:
    """A replaced bias and a delta on it cannot both be one target."""
    _, folder = adapt("MLP", target_modules=["lin0"], lora_bias=True, bias="lora_only")
    with pytest.raises(UnsupportedError, match=r"lin0\.bias: is changed in two ways"):
        converter.read(folder)


def test_resized_embedding_with_trained_rows_becomes_one_whole(
    adapt: Callable[..., tuple[object, Path]],
) -> None:
    """PEFT saves a resized embedding beside its trained rows; together they are the new embedding."""
    _, folder = adapt("Mixed", target_modules=["lin"], trainable_token_indices={"wte": [5, 1]})
    rows = load_file(folder / "adapter_model.safetensors")[P + "wte.token_adapter.trainable_tokens_delta"]
    whole = torch.rand(30, 8)
    copies = {P + "wte.token_adapter.base_layer.weight": whole, P + "wte.original_module.weight": whole.clone()}
    rewrite(folder, copies)
    adapter, report = converter.read(folder)
    whole[[5, 1]] = rows
    assert bytes(adapter.target("wte.weight").tensors["value"].data) == whole.numpy().tobytes()
    assert any("written into it" in entry.reason for entry in report.entries)


def test_square_weights_of_mixed_layouts_are_refused(tmp_path: Path, edit: Edit, saved: Path) -> None:
    """One flag for Conv1D and Linear alike: where a square weight hides the answer, nothing is assumed."""
    square = {f"{P}h.c_proj.lora_{f}.weight": torch.zeros(4, 4) for f in "AB"}
    other = {P + "lm_head.lora_A.weight": torch.zeros(4, 4), P + "lm_head.lora_B.weight": torch.zeros(9, 4)}
    rewrite(saved, square | other, drop="lin")
    edit(saved, target_modules=["c_proj", "lm_head"])
    with pytest.raises(UnsupportedError, match=r"h\.c_proj.*square"):
        converter.read(saved)
    edit(saved, base_model_name_or_path="openai-community/gpt2")
    layouts = {target.name: target.layout for target in converter.read(saved)[0]}
    assert layouts == {"h.c_proj.weight": ("in", "out"), "lm_head.weight": ("out", "in")}


def test_flag_decides_where_all_modules_are_alike(saved: Path, edit: Edit) -> None:
    """Without a mixture the flag is the truth, square or not."""
    square = {f"{P}{m}.dense.lora_{f}.weight": torch.zeros(4, 4) for f in "AB" for m in "xy"}
    rewrite(saved, square, drop="lin")
    edit(saved, target_modules=["dense"], fan_in_fan_out=True)
    assert {target.layout for target in converter.read(saved)[0]} == {("in", "out")}


@pytest.mark.parametrize(
    ("text", "part", "module", "depth"),
    [
        (P + "a.q.lora_A.weight", Part.A, "a.q", 0),
        (P + "a.q.lora_B.en.weight", Part.B, "a.q", 0),
        (P + "a.q.lora_B.bias", Part.B_BIAS, "a.q", 0),
        (P + "a.lora_embedding_A", Part.EMBEDDING_A, "a", 0),
        (P + "a.lora_embedding_B.en", Part.EMBEDDING_B, "a", 0),
        (P + "a.lora_magnitude_vector", Part.MAGNITUDE, "a", 0),
        (P + "a.lora_magnitude_vector.weight", Part.MAGNITUDE, "a", 0),
        (P + "a.lora_magnitude_vector.en.weight", Part.MAGNITUDE, "a", 0),
        (P + "e.base_layer.base_layer.lora_A.weight", Part.A, "e", 2),
        (P + "m.base_layer.out_proj.lora_A.weight", Part.A, "m.out_proj", 0),
        (P + "e.token_adapter.trainable_tokens_delta", Part.TOKENS, "e", 0),
        (P + "c.modules_to_save.default.weight", Part.PLAIN, "c.weight", 0),
        (P + "lora_block.lora_A.weight", Part.A, "lora_block", 0),
        (P + "net.lora_block.q.lora_A.weight", Part.A, "net.lora_block.q", 0),
    ],
)
def test_keys_are_taken_apart(text: str, part: Part, module: str, depth: int) -> None:
    """The grammar of keys, adapter names and nested wrappers included."""
    key = parse_key(text)
    assert key is not None
    assert (key.part, key.module, key.depth) == (part, module, depth)
