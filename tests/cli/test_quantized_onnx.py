"""``loreg merge`` and ``loreg verify`` with a quantized ONNX model: what stands on the terminal and in the receipt."""

from __future__ import annotations

import json
from pathlib import Path

import genai_model
import onnx
import pytest
from click.testing import CliRunner, Result
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from peft import LoraConfig
from peft_adapters import make_peft_adapter

from lora_registry.cli import main
from lora_registry.errors import IntegrityError, UnsupportedError


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small change of the queries and values of both layers."""
    folder = tmp_path_factory.mktemp("adapter") / "peft"
    config = LoraConfig(r=2, lora_alpha=0.04, target_modules=["q_proj", "v_proj"])
    make_peft_adapter(genai_model.torch_model(), config, folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama in four bits, with external data."""
    path = tmp_path_factory.mktemp("base") / "int4.onnx"
    quantizer = MatMulNBitsQuantizer(onnx.load(genai_model.MODEL), bits=4, block_size=16, is_symmetric=True)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), use_external_data_format=True)
    return path


def merge(adapter: Path, base: Path, output: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["merge", str(adapter), "--base", str(base), "-o", str(output), *options])


def test_the_terminal_and_the_receipt_say_that_changes_are_kept_beside(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    """The data file is the base's; a dry run and a replay agree with it."""
    result = merge(adapter, base, tmp_path / "merged.onnx")
    assert result.exit_code == 0, result.output
    assert "4 targets of quantized weights (MatMulNBits int4, blocks of 16) kept beside them" in result.output
    receipt = json.loads((tmp_path / "merged.onnx.receipt.json").read_text())
    assert {record["evidence"]["kept"] for record in receipt["tensors"]} == {"beside"}
    assert receipt["view"] == {"scheme": "MatMulNBits int4, blocks of 16"}
    told = json.loads(merge(adapter, base, tmp_path / "other.onnx", "--dry-run", "--json").stdout)
    assert told["targets"]["model.layers.0.self_attn.v_proj.weight"]["initializers"][0]["slice"]["start"] == 96
    (tmp_path / "again").mkdir()
    replayed = ["--replay", str(tmp_path / "merged.onnx.receipt.json")]
    assert merge(adapter, base, tmp_path / "again" / "merged.onnx", *replayed).exit_code == 0
    assert (tmp_path / "again" / "merged.onnx").read_bytes() == (tmp_path / "merged.onnx").read_bytes()


def test_quantizing_again_is_asked_for_and_refused_below_a_half(adapter: Path, base: Path, tmp_path: Path) -> None:
    """The change is small; --min-retention 0 takes what is left of it, and the warning says how much is not."""
    refused = merge(adapter, base, tmp_path / "merged.onnx", "--requantize")
    assert refused.exit_code == IntegrityError.exit_code
    assert "keep less than 50% of the change" in refused.output
    assert list(tmp_path.iterdir()) == []
    taken = merge(adapter, base, tmp_path / "merged.onnx", "--requantize", "--min-retention", "0")
    assert taken.exit_code == 0, taken.output
    assert "is lost in MatMulNBits int4, blocks of 16" in taken.output
    receipt = json.loads((tmp_path / "merged.onnx.receipt.json").read_text())
    assert receipt["options"]["requantize"] is True
    assert {record["dtype"] for record in receipt["tensors"]} == {"MatMulNBits int4, blocks of 16"}


def test_verify_wants_a_tolerance_for_a_quantized_model(adapter: Path, base: Path, tmp_path: Path) -> None:
    """Against a base in float32, four bits are off by more than any tolerance of loreg's own allows."""
    assert merge(adapter, base, tmp_path / "merged.onnx").exit_code == 0
    command = ["verify", str(tmp_path / "merged.onnx"), "--base", str(genai_model.BASE), "--adapter", str(adapter)]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == UnsupportedError.exit_code
    assert "computes with quantized weights (MatMulNBits)" in refused.output
    compared = CliRunner().invoke(main, [*command, "--tolerance", "0.5"])
    assert "computes with quantized weights" not in compared.output
