"""Merges into quantized bases are judged by the values that the base stands for, whatever program made them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Ggml
from gguf_files import model as write_gguf
from golden_vectors import NAMES, write_checkpoint
from loreg_converters.peft import converter
from peft import LoraConfig
from peft_adapters import make_peft_adapter, merged_model
from quantized_merges import OTHER, change, lora
from safetensors.numpy import save_file
from transformers import AutoModelForCausalLM, GgufConfig

from lora_registry.adapter import Adapter
from lora_registry.merge.bases.quantized import QuantizedCheckpoint, open_view
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.proof.judgement import Answer
from lora_registry.merge.proof.recompute import Recomputation, recompute
from lora_registry.ops.arrays import round_to


def before_rounding(folder: Path, adapter: Adapter) -> np.ndarray:
    """What the base stands for, in float32."""
    base = open_view(folder, adapter)
    assert isinstance(base, QuantizedCheckpoint)
    return base.weight("m.weight").rows(0, base.shape("m.weight")[0])


def judged(tmp_path: Path, adapter: Adapter, weight: np.ndarray, dtype: str, **options: Any) -> Recomputation:
    """The findings about an unquantized checkpoint in which ``weight`` is what should be W'."""
    folder = tmp_path / "merged"
    folder.mkdir(exist_ok=True)
    others = {"n.weight": np.arange(24, dtype=np.float16).reshape(4, 6)}
    save_file({"m.weight": round_to(weight, dtype), **others}, folder / "model.safetensors")
    return recompute(folder, tmp_path / "base", adapter, every=True, **options)


@pytest.mark.parametrize("name", NAMES)
def test_what_loreg_merged_into_a_quantized_base_holds(name: str, tmp_path: Path) -> None:
    """Every scheme, every row; and so does a weight that no target changes, in whatever type it was written."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = lora("m.weight", base.shape)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    found = recompute(tmp_path / "out", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert [judged.says for judged in found.changed] == ["rounded once"]
    assert any("its dequantized values count" in note for note in found.notes)
    assert any("nothing says that the adapter was trained on it so" in note for note in found.notes)
    wrong = replace(adapter, targets=(replace(adapter.targets[0], scale=2.0),))
    said = recompute(tmp_path / "out", tmp_path / "base", wrong).changed[0]
    assert said.answer is Answer.DOES_NOT
    assert "with scale 0.5 instead of 2" in said.says
    merge_checkpoint(lora("n.weight", (4, 6)), tmp_path / "base", tmp_path / "other", MergeOptions(dtype="m.*=F32"))
    found = recompute(tmp_path / "other", tmp_path / "base", lora("n.weight", (4, 6)), every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    view = open_view(tmp_path / "base", adapter).dtype("m.weight")
    says = "what the base stands for" if view == "F32" else "what the base stands for, converted to F32"
    assert says in {judged.says for judged in found.untouched}


@pytest.mark.parametrize("kind", [Ggml.Q8_0, Ggml.Q4_0, Ggml.Q5_1])
@pytest.mark.parametrize("target", ["model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight"])
def test_what_loreg_merged_into_a_gguf_file_holds(target: str, kind: Ggml, tmp_path: Path) -> None:
    """By either of its names; the scale is not another one, and the rows are not in another order."""
    path = write_gguf(tmp_path / "model.gguf", "llama", kind)
    adapter = lora(target, (64, 64))
    merge_checkpoint(adapter, path, tmp_path / "out.safetensors")
    found = recompute(tmp_path / "out.safetensors", path, adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert {judged.says for judged in found.untouched} == {
        "what the base stands for, converted to BF16",
        "what the base stands for",
    }
    wrong = replace(adapter, targets=(replace(adapter.targets[0], scale=0.25),))
    assert "scale 0.5 instead of 0.25" in recompute(tmp_path / "out.safetensors", path, wrong).changed[0].says
    assert recompute(tmp_path / "out.safetensors", path, None).answer is Answer.DOES_NOT


def test_what_peft_merged_into_a_gguf_file_holds(tmp_path: Path) -> None:
    """transformers dequantizes it in bfloat16, PEFT adds in float32; queries of llama are in another order there."""
    write_gguf(tmp_path / "model.gguf", "llama", Ggml.Q4_0)
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.bfloat16, quantization_config=plain
    )
    config = LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj", "down_proj"])
    wrapped = make_peft_adapter(model, config, tmp_path / "adapter")
    adapter, _ = converter.read(tmp_path / "adapter")
    merged_model(wrapped).save_pretrained(tmp_path / "merged")
    found = recompute(tmp_path / "merged", tmp_path / "model.gguf", adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert all("first the base to BF16" in judged.says for judged in found.changed)
    assert {judged.says for judged in found.untouched} == {"what the base stands for, converted to BF16"}


@pytest.mark.parametrize("name", ["nf4", "gptq-4", "awq", "fp8", "int8", "compressed-int4"])
def test_known_mistakes_on_a_quantized_base_are_called_by_their_names(name: str, tmp_path: Path) -> None:
    """The base as it is, the change twice, and the change in the weights that were there before the quantization."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = lora("m.weight", base.shape)
    weight, added = base.astype(np.float64), change(adapter)
    dtype = open_view(tmp_path / "base", adapter).dtype("m.weight")
    assert judged(tmp_path, adapter, weight + added, dtype).answer is Answer.HOLDS
    original = weight + np.random.default_rng(5).normal(size=weight.shape) * weight.std() * 0.09
    for merged, says in (
        (weight, "it is the base: the adapter was not applied"),
        (round_to(weight + added, dtype).astype(np.float64) + added, "the adapter was applied twice"),
        (weight - added, "it was subtracted"),
        (original, "something else was changed"),
    ):
        found = judged(tmp_path, adapter, merged, dtype)
        assert found.answer is Answer.DOES_NOT
        assert says in found.changed[0].says, (says, found.changed[0].says)
    adapter = lora("m.weight", base.shape, size=float(np.sqrt(weight.std() * 0.1)))
    found = judged(tmp_path, adapter, original + change(adapter), dtype)
    assert found.answer is Answer.DOES_NOT
    assert "the adapter's change is in it, added to weights that are" in found.changed[0].says
    assert "% off those that the base stands for: the unquantized ones?" in found.changed[0].says


def test_a_merge_into_the_unquantized_weights_shows_where_no_target_changes_them(tmp_path: Path) -> None:
    """The weight that nobody touched is near what the base stands for, and is not it."""
    base = write_checkpoint(tmp_path / "base", "nf4-double", **OTHER)
    original = base.astype(np.float64) + np.random.default_rng(5).normal(size=base.shape) * 0.09 * base.std()
    adapter = lora("n.weight", (4, 6))
    found = judged(tmp_path, adapter, original, "BF16")
    says = {judged.says for judged in found.untouched if judged.answer is Answer.DOES_NOT}
    assert len(says) == 1
    assert "% off what the base stands for, and no target changes it: the unquantized one?" in says.pop()


@pytest.mark.parametrize("name", ["nf4-double", "gptq-3", "awq", "fp8", "compressed-int4-zeros"])
def test_a_program_that_does_not_round_what_it_dequantizes_holds_and_is_told(name: str, tmp_path: Path) -> None:
    """Added to the values as they come out of the sum, or in another type of 16 bits; only that is rounded twice."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = lora("m.weight", base.shape)
    own = open_view(tmp_path / "base", adapter).dtype("m.weight")
    other = "F16" if own == "BF16" else "BF16"
    weight, added = before_rounding(tmp_path / "base", adapter), change(adapter)
    said = f"before these were rounded to {own}"
    found = judged(tmp_path, adapter, weight.astype(np.float64) + added, "F32")
    assert found.changed[0].answer is Answer.HOLDS, found.lines()
    assert found.changed[0].says == f"rounded once; added to the values of the base {said}"
    assert judged(tmp_path, adapter, weight + added, "F32", once_only=True).changed[0].answer is Answer.HOLDS
    twice = round_to(weight, other).astype(np.float64) + added
    found = judged(tmp_path, adapter, twice, other)
    assert found.changed[0].answer is Answer.HOLDS, found.lines()
    assert (
        f"first the base to {other}, then the result; added to the values of the base {said}" in found.changed[0].says
    )
    assert judged(tmp_path, adapter, twice, other, once_only=True).changed[0].answer is Answer.DOES_NOT
    found = judged(tmp_path, lora("n.weight", (4, 6)), weight, "F32")
    assert "what the base stands for, converted to F32 without being rounded" in found.untouched[0].says
