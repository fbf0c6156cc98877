"""A merged checkpoint is judged by recomputation: what is right holds, and what is wrong is called by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel
from peft_adapters import make_peft_adapter
from safetensors.numpy import load_file, save_file
from tiny_models import MODELS
from transformers import AutoModelForCausalLM

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import InvalidInputError, UnsupportedError, UsageError
from lora_registry.format.container import encode_tensors
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.proof.judgement import Answer
from lora_registry.merge.proof.nearest import nearest, unit
from lora_registry.merge.proof.recompute import Recomputation, recompute
from lora_registry.merge.undo.patch import write_undo
from lora_registry.merge.undo.unmerge import unmerge
from lora_registry.ops.arrays import from_array, numpy_dtype, round_to
from lora_registry.segments import Rope, Segment, Segments

SIZE, RANK, SCALE = 64, 16, 8.0
TYPES = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# Rounding


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_element_is_its_own_nearest_and_halves_go_to_even(dtype: str) -> None:
    """All bit patterns of a type stay; what lies in the middle of two goes to the one with an even last bit."""
    size = numpy_dtype(dtype).itemsize
    bits = np.arange(1 << (8 * size), dtype=np.uint32).astype(f"<u{size}")
    with np.errstate(invalid="ignore"):  # signaling NaN
        values = bits.view(numpy_dtype(dtype)).astype(np.float64)
    assert np.array_equal(nearest(values, dtype), values, equal_nan=True)
    positive = bits[: len(bits) // 2]
    finite = positive[np.isfinite(values[: len(positive)])]
    low, high = values[finite[:-1]], values[finite[1:]]
    middle = nearest((low + high) / 2, dtype)
    assert np.array_equal(middle, np.where(finite[:-1] % 2 == 0, low, high))
    assert np.array_equal(nearest(low + (high - low) * 0.49, dtype), low)
    assert np.array_equal(nearest(-low - (high - low) * 0.51, dtype), -high)
    assert np.array_equal(unit(low, dtype), high - low)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_rounding_agrees_with_the_merge_although_it_shares_nothing(dtype: str) -> None:
    """Normal, subnormal and overflowing numbers, a million of them."""
    random = np.random.default_rng(0)
    values = random.normal(size=1 << 20) * 2.0 ** random.integers(-40, 20, 1 << 20)
    assert np.array_equal(nearest(values, dtype), round_to(values, dtype).astype(np.float64), equal_nan=True)


# What is right


def merged_by_peft(tmp_path: Path, dtype: str, options: dict[str, Any], *, safe: bool, cast: bool) -> Adapter:
    """A tiny Llama in ``base``, and what PEFT makes of it in ``merged``."""
    model = MODELS["llama-untied"]().to(TORCH[dtype])
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=8, lora_alpha=13, target_modules="all-linear", **options)
    make_peft_adapter(model, config, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=TORCH[dtype])
    wrapped = PeftModel.from_pretrained(base, tmp_path / "adapter", autocast_adapter_dtype=cast)
    wrapped.merge_and_unload(safe_merge=safe).save_pretrained(tmp_path / "merged")
    return converter.read(tmp_path / "adapter")[0]


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("safe", [False, True])
def test_what_peft_merged_holds(safe: bool, dtype: str, options: dict[str, Any], tmp_path: Path) -> None:
    """With and without safe_merge; the second rounding of a safe merge is told, and does not follow P-015."""
    adapter = merged_by_peft(tmp_path, dtype, options, safe=safe, cast=True)
    paths = (tmp_path / "merged", tmp_path / "base", adapter)
    found = recompute(*paths, every=True)
    assert found.answer is Answer.HOLDS
    assert len(found.changed) == len(adapter)
    twice = safe and dtype != "F32" and "use_dora" not in options
    said = "rounded more than once: first the change to " + dtype if twice else "rounded once"
    assert all(judged.says.startswith(said) for judged in found.changed)
    strict = recompute(*paths, every=True, once_only=True)
    assert strict.answer is (Answer.DOES_NOT if twice else Answer.HOLDS)


@pytest.mark.parametrize("options", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_a_merge_in_half_precision_throughout_is_told(dtype: str, options: dict[str, Any], tmp_path: Path) -> None:
    """Factors that were loaded in the type of the base: rounded themselves, and their product again."""
    adapter = merged_by_peft(tmp_path, dtype, options, safe=False, cast=False)
    found = recompute(tmp_path / "merged", tmp_path / "base", adapter, every=True)
    assert found.answer is Answer.HOLDS
    assert all(f"first the factors to {dtype}, the change to {dtype}" in judged.says for judged in found.changed)


def test_a_model_that_was_loaded_in_another_type_is_told(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """A float32 base, loaded in bfloat16 and merged there: the base was rounded first, and all other tensors too."""
    model = MODELS["llama-untied"]()
    make_peft_adapter(model, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tiny_dir("llama-untied"), dtype=torch.bfloat16)
    PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload().save_pretrained(tmp_path / "merged")
    adapter, _ = converter.read(tmp_path / "adapter")
    found = recompute(tmp_path / "merged", tiny_dir("llama-untied"), adapter)
    assert found.answer is Answer.HOLDS
    assert {judged.says for judged in found.untouched} == {"the base's, converted to BF16"}
    assert all("first the base to BF16" in judged.says for judged in found.changed)


@pytest.mark.parametrize("dtype", [None, "BF16", "F16", "F64"])
@pytest.mark.parametrize(
    ("model", "config"),
    [
        ("llama-tied", LoraConfig(r=4, lora_alpha=5, target_modules=["q_proj", "embed_tokens"])),
        ("llama-tied", LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 5])),
        (
            "gpt2",
            LoraConfig(r=4, lora_alpha=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True),
        ),
        ("cnn", LoraConfig(r=4, lora_alpha=3, target_modules="all-linear", exclude_modules=[])),
        ("bert-token", LoraConfig(r=4, target_modules=["value"], modules_to_save=["classifier"])),
    ],
    ids=["embedding", "tokens", "conv1d-dora", "cnn", "head"],
)
def test_what_loreg_merged_holds(
    model: str, config: LoraConfig, dtype: str | None, peft_merge: Any, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Kinds, layouts, ties and output types of the merge, each recomputed row by row."""
    adapter, _ = peft_merge(model, config)
    merge_checkpoint(adapter, tiny_dir(model), tmp_path / "out", MergeOptions(dtype=dtype))
    found = recompute(tmp_path / "out", tiny_dir(model), adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert {name for judged in found.changed for name in judged.targets} == {target.name for target in adapter}
    assert all(judged.rows == judged.of for judged in found.changed)
    sampled = recompute(tmp_path / "out", tiny_dir(model), adapter, rows=3, seed=7)
    assert sampled.answer is Answer.HOLDS
    assert recompute(tiny_dir(model), tiny_dir(model), adapter).answer is Answer.DOES_NOT


def test_both_tied_tensors_are_what_peft_changes(
    peft_merge: Any, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """The policy is read off the checkpoint, said, and held against the one that is asked for."""
    adapter, _ = peft_merge("llama-tied", LoraConfig(r=4, target_modules=["embed_tokens"]))
    base = tiny_dir("llama-tied")
    merge_checkpoint(adapter, base, tmp_path / "both", MergeOptions(tied="both"))
    merge_checkpoint(adapter, base, tmp_path / "untied")
    assert any("tied: both" in note for note in recompute(tmp_path / "both", base, adapter).notes)
    assert any("untied" in note for note in recompute(tmp_path / "untied", base, adapter).notes)
    for folder, policy, other in (("both", "both", "untie"), ("untied", "untie", "both")):
        assert recompute(tmp_path / folder, base, adapter, tied=policy).answer is Answer.HOLDS
        assert recompute(tmp_path / folder, base, adapter, tied=other).answer is Answer.DOES_NOT
    config = tmp_path / "untied" / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": false', '"tie_word_embeddings": true'))
    assert any("a loader keeps one" in each for each in recompute(tmp_path / "untied", base, adapter).problems)


# What is wrong

SEGMENTS = Segments((Segment("gate", 32), Segment("up", 32)))
HEADS = Segments((Segment("q", 32, Rope(16, "halves", 16)), Segment("k", 16, Rope(16, "halves", 16)), Segment("v", 16)))


def pairs(change: np.ndarray) -> np.ndarray:
    """The rows of the heads of q and k in the order of pairs."""
    heads = [change[start : start + 16] for start in range(0, SIZE, 16)]
    return np.concatenate(
        [
            head if number == 3 else head.reshape(2, 8, SIZE).transpose(1, 0, 2).reshape(16, SIZE)
            for number, head in enumerate(heads)
        ]
    )


WRONG: dict[str, tuple[Callable[[np.ndarray, np.ndarray], np.ndarray], Segments | None, str]] = {
    "not applied": (lambda w, d: w, None, "it is the base: the adapter was not applied"),
    "rslora read as lora": (lambda w, d: w + d / 4, None, "with scale 2 instead of 8; a rank-stabilized scale"),
    "lora read as rslora": (lambda w, d: w + d * 4, None, "with scale 32 instead of 8; α / r read as rank-stabilized"),
    "unscaled": (lambda w, d: w + d / 8, None, "with scale 1 instead of 8; unscaled"),
    "alpha": (lambda w, d: w + d * 16, None, "with scale 128 instead of 8; α not divided by the rank?"),
    "half": (lambda w, d: w + d / 2, None, "with scale 4 instead of 8"),
    "odd": (lambda w, d: w + d * 0.61, None, "with scale 4.88 instead of 8"),
    "subtracted": (lambda w, d: w - d, None, "with scale -8 instead of 8; it was subtracted"),
    "transposed": (lambda w, d: w + d.T, None, "the change was transposed before it was added"),
    "halves": (lambda w, d: w + np.roll(d, 32, 0), None, "the two halves of its outputs were swapped"),
    "gate and up": (lambda w, d: w + np.roll(d, 32, 0), SEGMENTS, "in the order up, gate, and the base has gate, up"),
    "interleaved": (
        lambda w, d: w + d.reshape(2, 32, SIZE).transpose(1, 0, 2).reshape(SIZE, SIZE),
        SEGMENTS,
        "were taken as interleaved in 32 blocks, and the base has them one after the other",
    ),
    "v, k, q": (lambda w, d: w + np.concatenate([d[48:], d[32:48], d[:32]]), HEADS, "in the order v, k, q"),
    "rotary": (lambda w, d: w + pairs(d), HEADS, "in the other rotary order"),
    "noise": (
        lambda w, d: w + d.std() * np.random.default_rng(9).normal(size=d.shape),
        None,
        "something else was changed",
    ),
    "nan": (lambda w, d: np.where(np.eye(SIZE) > 0, np.nan, w + d), None, "not finite although those of the base are"),
    "damped": (lambda w, d: w + d * np.linspace(0.8, 1.2, SIZE), None, "at a cosine of 0.99"),
}


def one_target(dtype: str, tmp_path: Path, segments: Segments | None = None) -> tuple[Adapter, np.ndarray, np.ndarray]:
    """An adapter of one square tensor, the tensor, and its change; the base is in ``base.safetensors``."""
    random = np.random.default_rng(0)
    weights = {name: random.normal(size=(SIZE, SIZE)).astype(TYPES[dtype]) for name in ("w", "other")}
    a, b = (random.normal(size=shape).astype(np.float32) * 0.05 for shape in ((RANK, SIZE), (SIZE, RANK)))
    save_file(weights, tmp_path / "base.safetensors")
    factors = {"A": from_array(a), "B": from_array(b)}
    target = Target(
        name="w",
        kind=Kind.LINEAR,
        layout=("out", "in"),
        shape=(SIZE, SIZE),
        scale=SCALE,
        tensors=factors,
        segments=segments,
    )
    return Adapter(targets=(target,)), weights["w"].astype(np.float32), np.float32(SCALE) * (b @ a)


def judged(adapter: Adapter, weight: np.ndarray, dtype: str, tmp_path: Path, **options: Any) -> Recomputation:
    """The findings about a checkpoint in which ``weight`` is what should be W'."""
    other = load_file(tmp_path / "base.safetensors")["other"]
    with np.errstate(invalid="ignore"):
        save_file({"w": weight.astype(TYPES[dtype]), "other": other}, tmp_path / "merged.safetensors")
    return recompute(tmp_path / "merged.safetensors", tmp_path / "base.safetensors", adapter, **options)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_merge_is_called_by_its_name(name: str, dtype: str, tmp_path: Path) -> None:
    """Each known mistake, in each type, also where the program rounded the change first."""
    wrong, segments, says = WRONG[name]
    adapter, weight, change = one_target(dtype, tmp_path, segments)
    assert judged(adapter, weight + change, dtype, tmp_path).answer is Answer.HOLDS
    found = judged(adapter, wrong(weight, change), dtype, tmp_path, every=True)
    assert found.answer is Answer.DOES_NOT
    assert says in found.changed[0].says
    rounded = wrong(weight, change.astype(TYPES[dtype]).astype(np.float32))
    if name not in ("noise", "nan", "damped", "odd"):
        assert says in judged(adapter, rounded, dtype, tmp_path, every=True).changed[0].says


@pytest.mark.parametrize("dtype", TYPES)
def test_an_adapter_that_was_merged_twice_is_told(dtype: str, tmp_path: Path) -> None:
    """The second merge starts from what the first one rounded."""
    adapter, weight, change = one_target(dtype, tmp_path)
    once = (weight + change).astype(TYPES[dtype]).astype(np.float32)
    assert judged(adapter, once + change, dtype, tmp_path).changed[0].says == "the adapter was applied twice"


def test_a_magnitude_that_was_left_out_is_told(tmp_path: Path) -> None:
    """DoRA read as LoRA."""
    adapter, weight, change = one_target("BF16", tmp_path)
    magnitude = from_array(np.linspace(1, 2, SIZE).astype(np.float32))
    target = replace(adapter.targets[0], tensors={**adapter.targets[0].tensors, "magnitude": magnitude})
    found = judged(Adapter(targets=(target,)), weight + change, "BF16", tmp_path)
    assert found.changed[0].says == "the magnitude was left out: DoRA read as LoRA"


def test_a_single_wrong_element_shows_where_all_rows_are_looked_at(tmp_path: Path) -> None:
    """One unit in one element of four thousand, which no sum of the arithmetic explains."""
    adapter, weight, change = one_target("BF16", tmp_path)
    right = (weight + change).astype(ml_dtypes.bfloat16)
    bits = right.copy().view(np.uint16)
    bits[37, 5] += 1
    found = judged(adapter, bits.view(ml_dtypes.bfloat16), "BF16", tmp_path, every=True)
    assert found.answer is Answer.UNDECIDED
    assert "within 1 units everywhere" in found.changed[0].says
    bits[37, 5] += 9
    assert judged(adapter, bits.view(ml_dtypes.bfloat16), "BF16", tmp_path, every=True).answer is Answer.DOES_NOT


def test_what_nobody_can_see_is_not_called_sound(tmp_path: Path) -> None:
    """A change that rounding took away in the sampled rows; with all rows, the bytes are what a merge gives."""
    adapter, weight, _ = one_target("BF16", tmp_path)
    small = Adapter(targets=(replace(adapter.targets[0], scale=1e-9),))
    assert judged(small, weight, "BF16", tmp_path, rows=4).answer is Answer.UNDECIDED
    found = judged(small, weight, "BF16", tmp_path, every=True)
    assert found.answer is Answer.HOLDS
    assert "nothing of the change is left" in found.changed[0].says


def test_tensors_that_no_target_changes_are_the_base_s(tmp_path: Path) -> None:
    """One bit in another tensor, one that is missing, one too many: each is told."""
    adapter, weight, change = one_target("F32", tmp_path)
    right, other = weight + change, load_file(tmp_path / "base.safetensors")["other"]
    merged, base = tmp_path / "merged.safetensors", tmp_path / "base.safetensors"
    wrong = other.copy()
    wrong[-1, -1] = np.nextafter(wrong[-1, -1], np.float32(9))
    save_file({"w": right, "other": wrong}, merged)
    found = recompute(merged, base, adapter)
    assert found.answer is Answer.DOES_NOT
    assert found.untouched[0].says == "it is not the base's, and no target changes it"
    save_file({"w": right}, merged)
    assert recompute(merged, base, adapter).problems == ("missing: other",)
    save_file({"w": right, "other": other, "more": other}, merged)
    assert recompute(merged, base, adapter).problems == ("neither the base nor the adapter has: more",)
    save_file({"w": right[:, :7].copy(), "other": other}, merged)
    assert "its shape is [64, 7], the base's [64, 64]" in recompute(merged, base, adapter).changed[0].says


KINDS: dict[str, tuple[Kind, tuple[str, ...], tuple[int, ...], dict[str, tuple[int, ...]]]] = {
    "linear": (Kind.LINEAR, ("in", "out"), (24, 32), {"A": (4, 24), "B": (32, 4), "magnitude": (32,)}),
    "embedding": (Kind.EMBEDDING, ("in", "out"), (24, 32), {"A": (4, 24), "B": (32, 4)}),
    "conv": (
        Kind.CONV,
        ("out", "in", "k", "k"),
        (32, 6, 2, 3),
        {"A": (4, 6, 2, 3), "B": (32, 4, 1, 1), "magnitude": (32,)},
    ),
    "experts": (Kind.EXPERTS, ("expert", "in", "out"), (3, 24, 32), {"A": (3, 4, 24), "B": (3, 32, 4)}),
    "experts-rows": (Kind.EXPERTS, ("expert", "out", "in"), (3, 32, 24), {"A": (3, 4, 24), "B": (3, 32, 4)}),
    "bias": (Kind.BIAS, ("out",), (32,), {"delta": (32,)}),
    "loha": (Kind.LOHA, ("in", "out"), (24, 32), {"A1": (4, 24), "B1": (32, 4), "A2": (3, 24), "B2": (32, 3)}),
    "loha-conv": (
        Kind.LOHA,
        ("out", "in", "k"),
        (32, 6, 3),
        {"A1": (4, 6, 3), "B1": (32, 4), "A2": (2, 6, 3), "B2": (32, 2)},
    ),
    "lokr": (Kind.LOKR, ("out", "in"), (32, 24), {"C1": (4, 3), "A2": (2, 8), "B2": (8, 2)}),
    "lokr-columns": (Kind.LOKR, ("in", "out"), (24, 32), {"A1": (2, 3), "B1": (4, 2), "C2": (8, 8)}),
    "lokr-conv": (Kind.LOKR, ("out", "in", "k"), (32, 24, 3), {"C1": (4, 3), "C2": (8, 8, 3)}),
    "value": (
        Kind.LINEAR,
        ("out", "in"),
        (32, 24),
        {"A": (4, 24), "B": (32, 4), "value": (32, 24), "magnitude": (32,)},
    ),
    "full": (Kind.FULL, (), (32, 24), {"value": (32, 24)}),
}


@pytest.mark.parametrize("dtype", ["F64", "F32", "BF16"])
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_recomputed(name: str, dtype: str, tmp_path: Path) -> None:
    """The merge and the recomputation share no arithmetic, and agree about every kind and layout."""
    kind, layout, shape, roles = KINDS[name]
    random = np.random.default_rng(3)
    tensors = {role: from_array(random.normal(size=size).astype(np.float32)) for role, size in roles.items()}
    target = Target(name="w", kind=kind, layout=layout, shape=shape, scale=0.37, tensors=tensors)
    weight = random.normal(size=shape)
    save_file({"w": round_to(weight, dtype)}, tmp_path / "base.safetensors")
    adapter = Adapter(targets=(target,))
    merge_checkpoint(adapter, tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    found = recompute(tmp_path / "out.safetensors", tmp_path / "base.safetensors", adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert recompute(tmp_path / "base.safetensors", tmp_path / "base.safetensors", adapter).answer is Answer.DOES_NOT


def test_single_elements_are_looked_for(tmp_path: Path) -> None:
    """A sparse change of a few elements is found by the rows that it names, however few rows are sampled."""
    random = np.random.default_rng(3)
    save_file({"w": random.normal(size=(4096, 8)).astype(np.float32)}, tmp_path / "base.safetensors")
    tensors = {"index": from_array(np.array([5, 16000, 16001])), "delta": from_array(np.ones(3, np.float32))}
    adapter = Adapter(
        targets=(Target(name="w", kind=Kind.SPARSE, layout=(), shape=(4096, 8), scale=2.0, tensors=tensors),)
    )
    base = tmp_path / "base.safetensors"
    merge_checkpoint(adapter, base, tmp_path / "out.safetensors")
    assert recompute(tmp_path / "out.safetensors", base, adapter, rows=3).answer is Answer.HOLDS
    assert recompute(base, base, adapter, rows=3).answer is Answer.DOES_NOT


def test_rows_of_integers_are_replaced_bit_by_bit(tmp_path: Path) -> None:
    """Types that are not rounded are compared as they are."""
    save_file({"w": np.arange(12).reshape(4, 3)}, tmp_path / "base.safetensors")
    value = from_array(np.full((4, 3), 2**60 + 1))
    adapter = Adapter(targets=(Target(name="w", kind=Kind.FULL, layout=(), shape=(4, 3), tensors={"value": value}),))
    for number, answer in ((2**60 + 1, Answer.HOLDS), (2**60, Answer.DOES_NOT)):
        save_file({"w": np.full((4, 3), number)}, tmp_path / "out.safetensors")
        assert recompute(tmp_path / "out.safetensors", tmp_path / "base.safetensors", adapter).answer is answer


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    """Another base, a gate, and no rows at all are no question that could be answered."""
    adapter, weight, _ = one_target("F32", tmp_path)
    with pytest.raises(UnsupportedError):
        judged(replace(adapter, gate=(1,)), weight, "F32", tmp_path)
    with pytest.raises(UsageError):
        judged(adapter, weight, "F32", tmp_path, rows=0)
    save_file({"v": weight}, tmp_path / "base.safetensors")
    with pytest.raises(InvalidInputError):
        recompute(tmp_path / "merged.safetensors", tmp_path / "base.safetensors", adapter)


def test_the_values_of_a_quantized_base_count(tmp_path: Path) -> None:
    """A float8 base in blocks: what it stands for is recomputed, and the packed weights are not missing."""
    random = np.random.default_rng(0)
    base = tmp_path / "base"
    base.mkdir()
    weights = {
        "l.weight": random.normal(size=(128, 256)).astype(ml_dtypes.float8_e4m3fn),
        "l.weight_scale_inv": np.array([[0.5, 0.25]], np.float32),
        "norm.weight": np.ones(7, ml_dtypes.bfloat16),
    }
    (base / "model.safetensors").write_bytes(
        b"".join(encode_tensors({name: from_array(array) for name, array in weights.items()}, {}))
    )
    quantization = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    (base / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    factors = {
        "A": from_array(random.normal(size=(4, 256)).astype(np.float32)),
        "B": from_array(random.normal(size=(128, 4)).astype(np.float32)),
    }
    target = Target(name="l.weight", kind=Kind.LINEAR, layout=("out", "in"), shape=(128, 256), tensors=factors)
    adapter = Adapter(targets=(target,))
    merge_checkpoint(adapter, base, tmp_path / "out")
    found = recompute(tmp_path / "out", base, adapter, every=True)
    assert found.answer is Answer.HOLDS, found.lines()
    assert any("dequantized" in note for note in found.notes)
    other = replace(adapter, targets=(replace(target, scale=2.0),))
    assert "with scale 1 instead of 2" in recompute(tmp_path / "out", base, other).changed[0].says
    write_undo(base, tmp_path / "out", tmp_path / "q.undo")
    unmerge(tmp_path / "out", tmp_path / "q.undo", tmp_path / "again")
    assert {path.name: path.read_bytes() for path in base.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }
