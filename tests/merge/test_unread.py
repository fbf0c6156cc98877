"""Bases that are quantized by a method that loreg does not read: refused by name, but for what is plain numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.cli import main
from lora_registry.errors import InconclusiveError, UnsupportedError
from lora_registry.format.writer import write_adapter
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.proof.judgement import Answer
from lora_registry.merge.proof.recompute import recompute
from lora_registry.ops.arrays import from_array

METHODS = ["aqlm", "auto-round", "bitnet", "eetq", "fp_quant", "higgs", "hqq", "metal", "mxfp4", "nvfp4", "quanto"]
METHODS += ["quark", "sinq", "spqr", "torchao", "vptq", "modelopt"]

STORED = {
    "hqq": {"W_q": np.zeros((32, 16), np.uint8), "meta": np.zeros(4, np.float16)},
    "aqlm": {"codes": np.zeros((4, 8, 1), np.int16), "codebooks": np.zeros((1, 4, 1, 8), np.float16)},
    "eetq": {"weight": np.zeros((32, 16), np.int8), "weight_scales": np.zeros(16, np.float16)},
    "torchao": {"weight:_weight_qdata": np.zeros((16, 32), np.int8), "weight:_weight_scale": np.zeros(16, np.float32)},
    "quanto": {"weight._data": np.zeros((16, 32), np.int8), "weight._scale": np.zeros((16, 1), np.float16)},
    "scaled": {"weight": np.zeros((16, 32), np.float16), "weight_scale": np.zeros(16, np.float16)},
    "nested": {"weight": np.zeros((16, 32), np.float16), "weight.absmax": np.zeros(16, np.float16)},
}
"""What a module has whose weight has 16 outputs and 32 inputs."""


def base_of(folder: Path, method: str, module: dict[str, np.ndarray]) -> Path:
    """A checkpoint with that module, and a head that is not quantized."""
    folder.mkdir()
    tensors = {f"m.{name}": array for name, array in module.items()}
    head = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float16)
    save_file({**tensors, "lm_head.weight": head, "lm_head.bias": head[0]}, folder / "model.safetensors")
    config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def lora(name: str) -> Adapter:
    """A change of rank 2."""
    rng = np.random.default_rng(1)
    factors = {
        "A": from_array(rng.standard_normal((2, 32)).astype(np.float32)),
        "B": from_array(rng.standard_normal((16, 2)).astype(np.float32)),
    }
    target = Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(16, 32), tensors=factors)
    return Adapter(targets=(target,))


@pytest.mark.parametrize("stored", STORED)
def test_what_is_not_there_as_plain_numbers_is_refused_by_the_name_of_its_method(stored: str, tmp_path: Path) -> None:
    """Whether the weight has another name, another type, or only scales beside it; nothing is written."""
    base = base_of(tmp_path / "base", stored, STORED[stored])
    with pytest.raises(UnsupportedError) as caught:
        merge_checkpoint(lora("m.weight"), base, tmp_path / "out")
    said = str(caught.value)
    assert f"is quantized by '{stored}', which loreg does not read, and m.weight of it is not there" in said
    assert "loreg reads bitsandbytes, gptq, awq" in said
    assert "\n" not in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(UnsupportedError, match="which loreg does not read"):
        recompute(base, base, lora("m.weight"))


@pytest.mark.parametrize("method", METHODS)
def test_what_is_plain_numbers_is_merged_and_the_receipt_says_so(method: str, tmp_path: Path) -> None:
    """A head that was left out of the quantization; all else, the configuration too, stays as it is."""
    base = base_of(tmp_path / "base", method, STORED["hqq"])
    receipt = merge_checkpoint(lora("lm_head.weight"), base, tmp_path / "out")
    note = f"the base is quantized by '{method}', which loreg does not read: every weight that the adapter changes is"
    assert any(said.startswith(note) for said in receipt.notes)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out"))
    assert before.keys() == after.keys()
    assert [name for name in before if not np.array_equal(before[name], after[name])] == ["lm_head.weight"]
    assert (tmp_path / "out" / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert recompute(tmp_path / "out", base, lora("lm_head.weight"), every=True).answer is Answer.HOLDS


def test_what_was_quantized_by_such_a_method_after_the_merge_is_not_decided(tmp_path: Path) -> None:
    """Nothing is missing: it is there in a form that nobody here reads."""
    merged = base_of(tmp_path / "merged", "hqq", STORED["hqq"])
    weight = np.random.default_rng(0).normal(size=(16, 32)).astype(np.float16)
    base = base_of(tmp_path / "base", "hqq", {"weight": weight})
    (base / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(
        InconclusiveError, match="quantized by 'hqq', which loreg does not read, so that nothing can be"
    ):
        recompute(merged, base, lora("m.weight"))


def test_scales_that_nobody_knows_are_not_converted(tmp_path: Path) -> None:
    """Another type is for what the adapter changes, and for nothing else."""
    base = base_of(tmp_path / "base", "hqq", STORED["hqq"])
    with pytest.raises(UnsupportedError, match=r"stays as it is; give a type to what the adapter changes"):
        merge_checkpoint(lora("lm_head.weight"), base, tmp_path / "out", MergeOptions(dtype="F32"))
    merge_checkpoint(lora("lm_head.weight"), base, tmp_path / "out", MergeOptions(dtype="touched=F32"))
    assert load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"].dtype == np.float32


def test_the_command_refuses_in_one_line(tmp_path: Path) -> None:
    """With the exit code of what is not supported, in a dry run too."""
    base = base_of(tmp_path / "base", "hqq", STORED["hqq"])
    write_adapter(lora("m.weight"), tmp_path / "a.safetensors")
    arguments = ["merge", str(tmp_path / "a.safetensors"), "--base", str(base), "-o", str(tmp_path / "out")]
    for more in ([], ["--dry-run"]):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == UnsupportedError.exit_code
        assert "quantized by 'hqq'" in result.output
