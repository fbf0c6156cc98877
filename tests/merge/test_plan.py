"""What is decided before anything is written: places, alignment, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.digest import Digest
from lora_registry.errors import UnsupportedError
from lora_registry.format.container import Entry, encode_header
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.ops.arrays import from_array


def odd_base(path: Path) -> Path:
    """A sound file whose first tensor has three bytes, so that nothing after it is aligned once it widens."""
    mask, weight = np.array([1, 0, 1], np.uint8), np.arange(9, dtype=np.float16)
    entries = {"mask": Entry("U8", (3,), 0, 3), "pad": Entry("U8", (1,), 3, 4), "weight": Entry("F16", (9,), 4, 22)}
    path.write_bytes(encode_header(entries, {"format": "pt"}) + mask.tobytes() + b"\0" + weight.tobytes())
    return path


def full(name: str, value: np.ndarray) -> Target:
    return Target(name=name, kind=Kind.FULL, layout=(), shape=value.shape, tensors={"value": from_array(value)})


def test_added_tensors_are_aligned(tmp_path: Path) -> None:
    """A tensor that would lie at an odd place moves all wide ones to the front; torch can map the result."""
    base, value = odd_base(tmp_path / "base.safetensors"), np.arange(5, dtype=np.float32)
    adapter = Adapter(targets=(full("new", value),))
    receipt = merge_checkpoint(adapter, base, tmp_path / "out.safetensors", MergeOptions(allow_new=True))
    merged = open_base(tmp_path / "out.safetensors")
    assert all(merged.entry(name).begin % merged.array(name).itemsize == 0 for name in merged.names())
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("new"), torch.arange(5, dtype=torch.float32))
        assert torch.equal(file.get_tensor("weight"), torch.arange(9, dtype=torch.float16))
        assert file.get_tensor("mask").tolist() == [1, 0, 1]
    assert [record.digest for record in receipt.inputs] == [Digest.of_file(base)]
    assert [record.digest for record in receipt.outputs] == [Digest.of_file(tmp_path / "out.safetensors")]


def test_conversion_leaves_integers_alone(tmp_path: Path) -> None:
    """Floats widen, integers stay; the digest of the input is right even where the order of its tensors changes."""
    base, value = odd_base(tmp_path / "base.safetensors"), np.full(9, 0.1, np.float32)
    receipt = merge_checkpoint(
        Adapter(targets=(full("weight", value),)), base, tmp_path / "out.safetensors", MergeOptions(dtype="F32")
    )
    merged = open_base(tmp_path / "out.safetensors")
    assert np.array_equal(merged.array("weight"), value)
    assert merged.dtype("mask") == "U8"
    assert [record.digest for record in receipt.inputs] == [Digest.of_file(base)]


def test_a_grouped_conv_is_refused_before_anything_is_written(tiny_dir, tmp_path: Path) -> None:
    """PEFT's form of a grouped conv is no change of the kernel; PEFT itself refuses to merge it."""
    import tiny_models
    from loreg_converters.peft import converter
    from peft_adapters import make_peft_adapter, merged_model

    config = LoraConfig(r=4, target_modules=["grouped", "head"])
    wrapped = make_peft_adapter(tiny_models.MODELS["cnn"](), config, tmp_path / "peft")
    adapter, _ = converter.read(tmp_path / "peft")
    with pytest.raises(UnsupportedError, match="grouped conv"):
        merge_checkpoint(adapter, tiny_dir("cnn"), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["peft"]
    with pytest.raises(NotImplementedError):
        merged_model(wrapped)


def test_trained_tokens_keep_the_tie(tiny_dir, tmp_path: Path) -> None:
    """PEFT trains the tokens of tied embeddings together, so the merged model stays tied."""
    import tiny_models
    from loreg_converters.peft import converter
    from peft_adapters import make_peft_adapter
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [5, 9]})
    wrapped = make_peft_adapter(tiny_models.MODELS["llama-tied"](), config, tmp_path / "peft")
    adapter, _ = converter.read(tmp_path / "peft")
    receipt = merge_checkpoint(adapter, tiny_dir("llama-tied"), tmp_path / "out")
    assert "lm_head.weight" not in set(open_base(tmp_path / "out").names())
    assert any("stay tied" in note for note in receipt.notes)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    ids = torch.tensor([[4, 5, 9, 11]])
    with torch.no_grad():
        np.testing.assert_allclose(
            loaded(input_ids=ids).logits.numpy(), wrapped(input_ids=ids).logits.numpy(), rtol=1e-4, atol=1e-4
        )
