"""Merged checkpoints hold what PEFT's merge_and_unload() gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft_jobs import JOBS
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from lora_registry.adapter import Adapter
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.fitting.fit import fit
from lora_registry.merge.options import MergeOptions
from lora_registry.ops.arrays import round_to
from lora_registry.ops.change import merged

TOLERANCE = 1e-5


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, relative to the largest expected value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("job", JOBS)
def test_equals_peft(job: str, peft_merge, tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Every tensor that is stored equals PEFT's, the changed ones to 1e-5, the others bit for bit."""
    base = tiny_dir(JOBS[job].model)
    adapter, expected = peft_merge(JOBS[job].model, JOBS[job].config())
    receipt = merge_checkpoint(adapter, base, tmp_path / "out", MergeOptions(tied=JOBS[job].tied))
    actual = load_file(tmp_path / "out" / "model.safetensors")
    before = load_file(base / "model.safetensors")
    changed = {record.name for record in receipt.tensors}
    assert actual.keys() == before.keys()
    assert {record.target for record in receipt.tensors} == {target.name for target in adapter}
    for name, tensor in actual.items():
        if name in changed:
            assert relative(tensor, expected[name]) <= TOLERANCE, name
            assert relative(before[name], expected[name]) > 100 * TOLERANCE, name
        else:
            assert tensor.tobytes() == before[name].tobytes(), name
            assert np.array_equal(tensor, expected[name]), name


def test_bfloat16_is_the_correctly_rounded_sum(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """At most one element in ten thousand differs from the rounded float64 sum, and by one unit.

    The unit is that of the larger of W and W': where they cancel, float32 cannot know the digits of what is left.
    """
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_dir("llama-untied"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "base")
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=8, lora_alpha=13, target_modules="all-linear"))
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    base, out = open_base(tmp_path / "base"), open_base(tmp_path / "out")
    different = elements = 0
    for target in adapter:
        assert out.dtype(target.name) == "BF16"
        exact = merged(target, base.array(target.name).astype(np.float64))
        wanted, actual = round_to(exact, "BF16").astype(np.float64), out.array(target.name).astype(np.float64)
        larger = np.maximum(np.abs(wanted), np.abs(base.array(target.name).astype(np.float64)))
        unit = 2.0 ** (np.floor(np.log2(larger)) - 7)  # bfloat16 has seven bits after the first
        assert (np.abs(wanted - actual) <= unit).all()
        different += int(np.count_nonzero(wanted != actual))
        elements += wanted.size
    assert different <= 1e-4 * elements


def test_float32_output_of_a_bfloat16_base_keeps_the_change(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """dtype=F32 converts every tensor, says so in the configuration, and loses nothing."""
    from transformers import LlamaForCausalLM

    LlamaForCausalLM.from_pretrained(tiny_dir("llama-untied"), dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=2, lora_alpha=1, target_modules=["q_proj"]))
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", MergeOptions(dtype="float32"))
    out, base = open_base(tmp_path / "out"), open_base(tmp_path / "base")
    assert {out.dtype(name) for name in out.names()} == {"F32"}
    assert out.config["dtype"] == "float32"
    assert all(record.fidelity.relative_error < 1e-4 for record in receipt.tensors)
    for name in base.names():
        if name not in {target.name for target in adapter}:
            assert np.array_equal(out.array(name), base.array(name).astype(np.float32))


def test_shards_merge_like_one_file(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """A sharded base gives the same tensors; shards without a target are byte-identical, headers too."""
    whole = tiny_dir("llama-untied")
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(tmp_path / "base", max_shard_size="40KB")
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=4, target_modules=["q_proj"]))
    merge_checkpoint(adapter, whole, tmp_path / "one")
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "many")
    one, many, base = open_base(tmp_path / "one"), open_base(tmp_path / "many"), open_base(tmp_path / "base")
    assert len(many.shards) > 2
    assert set(one.names()) == set(many.names())
    for name in one.names():
        assert np.array_equal(one.array(name), many.array(name))
    touched = {base.places[target.name] for target in adapter}
    assert touched != set(base.shards)
    for file, shard in base.shards.items():
        assert many.shards[file].header_bytes == shard.header_bytes
        same = (tmp_path / "many" / file).read_bytes() == (tmp_path / "base" / file).read_bytes()
        assert same == (file not in touched)
    index = "model.safetensors.index.json"
    assert (tmp_path / "many" / index).read_bytes() == (tmp_path / "base" / index).read_bytes()


def test_two_merges_give_equal_bytes(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """Output and receipt are functions of base, adapter and options."""
    adapter, _ = peft_merge("gpt2", JOBS["gpt2-lora"].config())
    for name in ("a", "b"):
        merge_checkpoint(adapter, tiny_dir("gpt2"), tmp_path / name)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second


def test_the_receipt_tells_the_digests_of_all_files(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """Inputs and outputs are in the receipt with the sha256 that a reader finds on the disk."""
    base = tiny_dir("bert-token")
    adapter, _ = peft_merge("bert-token", JOBS["bert-tagger"].config())
    merge_checkpoint(adapter, base, tmp_path / "out")
    receipt = json.loads((tmp_path / "out" / "loreg-receipt.json").read_bytes())
    for part, folder in (("inputs", base), ("outputs", tmp_path / "out")):
        told = {record["name"]: record["digest"] for record in receipt[part]}
        found = {
            path.name: "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.iterdir()
            if path.name != "loreg-receipt.json"
        }
        assert told == found
    assert receipt["options"] == {
        "allow_new": False,
        "allow_growth": False,
        "dtype": None,
        "hash": True,
        "require_exact": False,
        "tied": "untie",
        "requantize": False,
        "device": "cpu",
    }


def test_a_single_file_gives_a_single_file(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """A .safetensors base gives a .safetensors output with the receipt beside it."""
    base = tiny_dir("cnn") / "model.safetensors"
    adapter, expected = peft_merge("cnn", JOBS["cnn-lora"].config())
    merge_checkpoint(adapter, base, tmp_path / "cnn.safetensors")
    actual = load_file(tmp_path / "cnn.safetensors")
    assert all(relative(actual[name], expected[name]) <= TOLERANCE for name in expected)
    receipt = json.loads((tmp_path / "cnn.safetensors.receipt.json").read_bytes())
    assert [record["name"] for record in receipt["outputs"]] == ["cnn.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cnn.safetensors",
        "cnn.safetensors.receipt.json",
        "peft",
    ]


def test_rounding_losses_are_told(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """A change far below the grid of bfloat16 is reported as lost, with what to do about it (P-018)."""
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=2, lora_alpha=0.002, target_modules=["q_proj"]))
    receipt = merge_checkpoint(adapter, tiny_dir("llama-untied"), tmp_path / "out", MergeOptions(dtype="BF16"))
    assert "lost in BF16" in receipt.warnings[0]
    assert "dtype touched=F32" in receipt.warnings[0]


def expert_adapter(shape: tuple[int, int, int], layout: tuple[str, str, str], rank: int) -> Adapter:
    """A random adapter for one stack of experts."""
    from lora_registry.adapter import Kind, Target
    from lora_registry.ops.arrays import from_array

    rng = np.random.default_rng(3)
    experts, out, inner = shape[0], shape[layout.index("out")], shape[layout.index("in")]
    factors = {
        "A": from_array(rng.normal(size=(experts, rank, inner)).astype(np.float32)),
        "B": from_array(rng.normal(size=(experts, out, rank)).astype(ml_dtypes.bfloat16)),
    }
    target = Target(name="experts", kind=Kind.EXPERTS, layout=layout, shape=shape, scale=0.7, tensors=factors)
    return Adapter(targets=(target,))


@pytest.mark.parametrize("layout", [("expert", "out", "in"), ("expert", "in", "out")])
def test_each_expert_gets_its_own_change(layout: tuple[str, str, str], tmp_path: Path) -> None:
    """A stack of experts, in both layouts, equals the sum taken expert by expert."""
    from safetensors.numpy import save_file

    weight = np.random.default_rng(0).normal(size=(3, 10, 6)).astype(np.float32)
    save_file({"experts": weight}, tmp_path / "base.safetensors")
    adapter = expert_adapter(weight.shape, layout, rank=2)
    merge_checkpoint(adapter, tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    from lora_registry.ops.arrays import to_array

    a, b = (to_array(adapter.targets[0].tensors[role]).astype(np.float64) for role in "AB")
    change = 0.7 * np.einsum("eor,eri->eoi" if layout[1] == "out" else "eor,eri->eio", b, a)
    assert relative(load_file(tmp_path / "out.safetensors")["experts"], weight + change) <= TOLERANCE


def test_the_experts_of_peft_are_merged_as_peft_does(tmp_path: Path) -> None:
    """target_parameters on a 3-D parameter: PEFT's adapter, converted and merged, equals PEFT's merge."""
    from loreg_converters.peft import converter
    from peft_adapters import arrays, make_peft_adapter, merged_model
    from safetensors.torch import save_file

    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.weight = torch.nn.Parameter(torch.randn(3, 6, 10, generator=generator))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("bi,eoi->beo", x, self.weight)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = Experts()
            self.head = torch.nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.mlp(x).sum(1))

    torch.manual_seed(0)
    model = Model()
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["head"], target_parameters=["mlp.weight"])
    wrapped = make_peft_adapter(model, config, tmp_path / "peft")
    adapter, _ = converter.read(tmp_path / "peft")
    expected = arrays(merged_model(wrapped))
    assert fit(adapter, open_base(tmp_path / "base.safetensors")).verdict == "same-shapes"
    merge_checkpoint(adapter, tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    actual = load_file(tmp_path / "out.safetensors")
    assert all(relative(actual[name], expected[name]) <= TOLERANCE for name in expected)
