"""Bases that torch pickled: merged without torch, into safetensors, with nothing run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import from_array


@pytest.fixture
def adapter() -> Adapter:
    """A random change of ``w``."""
    rng = np.random.default_rng(0)
    factors = {"A": rng.normal(size=(2, 600)).astype(np.float32), "B": rng.normal(size=(700, 2)).astype(np.float32)}
    tensors = {role: from_array(array) for role, array in factors.items()}
    return Adapter(
        targets=(Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=(700, 600), tensors=tensors),)
    )


def state() -> dict[str, torch.Tensor]:
    """A matrix in bfloat16, integers, and a vector."""
    torch.manual_seed(0)
    return {"w": torch.randn(700, 600).bfloat16(), "ids": torch.arange(9), "v": torch.randn(5)}


def test_the_merge_is_that_of_the_same_base_in_safetensors(adapter: Adapter, tmp_path: Path) -> None:
    """Tensor by tensor, and the digest of the pickled file stands in the receipt."""
    torch.save(state(), tmp_path / "base.bin")
    save_file(state(), tmp_path / "base.safetensors")
    receipt = merge_checkpoint(adapter, tmp_path / "base.bin", tmp_path / "out.safetensors")
    merge_checkpoint(adapter, tmp_path / "base.safetensors", tmp_path / "expected.safetensors")
    merged, expected = open_base(tmp_path / "out.safetensors"), open_base(tmp_path / "expected.safetensors")
    assert set(merged.names()) == {"w", "ids", "v"}
    for name in merged.names():
        assert merged.tensor(name).data == expected.tensor(name).data
    assert [(record.name, record.digest) for record in receipt.inputs] == [
        ("base.bin", Digest.of_file(tmp_path / "base.bin"))
    ]
    assert [record.digest for record in receipt.outputs] == [Digest.of_file(tmp_path / "out.safetensors")]


def test_a_pickled_folder_becomes_one_that_transformers_loads(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """In shards, with an index of the new names; the pickles stay behind."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    adapter, expected = peft_merge("llama-untied", LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    base = tmp_path / "base"
    base.mkdir()
    tensors = load_file(tiny_dir("llama-untied") / "model.safetensors")
    names = sorted(tensors)
    shards = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in shards.items():
        torch.save({name: tensors[name] for name in part}, base / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (base / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (base / "config.json").write_bytes((tiny_dir("llama-untied") / "config.json").read_bytes())
    merge_checkpoint(adapter, base, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "loreg-receipt.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    assert set(names) <= set(loaded)
    for name in names:
        np.testing.assert_allclose(loaded[name].numpy(), expected[name], rtol=1e-5, atol=1e-6)


def test_what_is_no_plain_state_dict_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    """A view that is transposed, and a program: by name, and nothing is written."""
    torch.save({"w": torch.randn(600, 700).T}, tmp_path / "view.bin")
    with pytest.raises(UnsupportedError, match="w is a view whose elements are not in row-major order"):
        merge_checkpoint(adapter, tmp_path / "view.bin", tmp_path / "out.safetensors")
    torch.save({"w": state()["w"], "run": print}, tmp_path / "program.bin")
    with pytest.raises(InvalidInputError, match="refused, nothing was run"):
        merge_checkpoint(adapter, tmp_path / "program.bin", tmp_path / "out.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["program.bin", "view.bin"]
