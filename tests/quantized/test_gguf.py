"""GGUF files against the gguf package, and against transformers' own reading of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Ggml
from gguf import GGUFWriter
from gguf_files import model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from lora_registry.errors import InvalidInputError, LoregError, NotFoundError, UnsupportedError
from lora_registry.quantized.gguf_file import TYPES, open_gguf
from lora_registry.quantized.gguf_names import quantization

QUANTIZED = {number: kind for number, kind in TYPES.items() if kind.elements > 1}


@pytest.mark.parametrize("number", QUANTIZED)
def test_blocks_of_any_bytes_are_what_the_gguf_package_makes_of_them(number: int) -> None:
    """Every element type, every bit, infinite and undefined scales included."""
    kind = QUANTIZED[number]
    blocks = np.random.default_rng(number).integers(0, 256, (3000, kind.size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = gguf.dequantize(blocks, Ggml(number))
        actual = kind.decode(blocks)
    assert kind.name == Ggml(number).name
    assert (kind.elements, kind.size) == gguf.GGML_QUANT_SIZES[Ggml(number)]
    assert actual.dtype == np.float32
    assert np.array_equal(actual, expected, equal_nan=True)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_names_and_values_are_those_that_transformers_loads(tmp_path: Path, architecture: str) -> None:
    """Rows of llama's queries and keys too, which llama.cpp permutes."""
    path = model(tmp_path / "model.gguf", architecture)
    config = load_gguf_checkpoint(str(path), return_tensors=False)["config"]
    skeleton = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    expected = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=skeleton)["tensors"]
    found = quantization(open_gguf(path), frozenset({"model.layers.0.mlp.up_proj.weight"}))
    assert set(found.weights) == set(expected)
    for name, weight in found.weights.items():
        rows = int(np.prod(weight.shape[:-1]))
        assert torch.equal(torch.from_numpy(weight.rows(0, rows).reshape(weight.shape)), expected[name].float()), name


def test_an_adapter_by_gguf_names_sees_the_file_as_it_is(tmp_path: Path) -> None:
    """Rows too: what was trained on the file's own order fits it."""
    file = open_gguf(model(tmp_path / "model.gguf", "llama"))
    found = quantization(file, frozenset({"blk.0.attn_q.weight"}))
    assert found.weights.keys() == file.weights.keys()
    assert found.weights["blk.0.attn_q.weight"].order is None


def test_a_file_of_another_architecture_keeps_its_names(tmp_path: Path) -> None:
    """Gemma's norms are stored plus 1: no renaming would be right."""
    file = open_gguf(model(tmp_path / "model.gguf", "gemma"))
    assert "blk.0.attn_q.weight" in quantization(file, frozenset()).weights


def test_what_is_quantized_is_written_as_bf16_and_the_rest_as_it_is(tmp_path: Path) -> None:
    """The values are float32; BF16 is what a merge writes of them by itself."""
    found = quantization(open_gguf(model(tmp_path / "model.gguf", "llama", Ggml.Q4_0)), frozenset())
    assert found.scheme.to_json() == {"scheme": "gguf", "types": "Q4_0"}
    assert found.written["model.layers.0.mlp.up_proj.weight"] == "BF16"
    assert found.weights["model.layers.0.mlp.up_proj.weight"].dtype == "F32"
    assert "model.norm.weight" not in found.written


def test_a_file_that_ends_anywhere_is_refused(tmp_path: Path) -> None:
    """Every shorter file, one line and no other error."""
    whole = model(tmp_path / "model.gguf", "llama").read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 1200, 7), len(whole) // 2, len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with pytest.raises(LoregError):
            open_gguf(cut)


def test_any_byte_of_the_records_may_be_wrong(tmp_path: Path) -> None:
    """A file that opens has tensors that lie within it; all others are refused by loreg's own errors."""
    whole = bytearray(model(tmp_path / "model.gguf", "llama").read_bytes())
    bad = tmp_path / "bad.gguf"
    for position in range(0, 1100, 3):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        bad.write_bytes(damaged)
        try:
            file = open_gguf(bad)
        except LoregError:
            continue
        assert sum(weight.blocks.size for weight in file.weights.values()) <= 2 * len(whole)


def test_what_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    """Element types, versions, parts of a model, no file at all."""
    path = tmp_path / "model.gguf"
    with pytest.raises(NotFoundError):
        open_gguf(tmp_path / "none.gguf")
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("a.weight", np.zeros((4, 18), np.uint8), raw_dtype=Ggml.IQ4_NL)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"a\.weight has ggml's element type 20"):
        open_gguf(path)
    writer = GGUFWriter(path, "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match="one of 3 parts"):
        open_gguf(path)
    data = bytearray(path.read_bytes())
    data[4] = 1
    path.write_bytes(data)
    with pytest.raises(UnsupportedError, match="GGUF version 1"):
        open_gguf(path)
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(InvalidInputError, match="does not begin with 'GGUF'"):
        open_gguf(path)
