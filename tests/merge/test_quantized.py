"""Merging into quantized bases: into the values that they stand for, rounded once, and told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf_files import model as write_gguf
from golden_vectors import vector, write_checkpoint

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor
from lora_registry.cli import main
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.container import open_container
from lora_registry.format.writer import write_adapter
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.ops.arrays import as_bytes, from_array, round_to, to_array
from lora_registry.quantized.gguf_file import open_gguf

SCHEMES = ["nf4", "nf4-double", "fp4-double", "int8", "gptq-3", "gptq-4", "gptq-4-v2", "awq", "fp8"]
SCHEMES += ["compressed-int4-zeros", "compressed-int8", "compressed-fp8"]


def lora(name: str, shape: tuple[int, ...], **base: object) -> Adapter:
    """A change of rank 2 to one matrix."""
    rng = np.random.default_rng(1)
    A = rng.standard_normal((2, shape[1])).astype(np.float32) / 10
    B = rng.standard_normal((shape[0], 2)).astype(np.float32) / 10
    factors = {"A": from_array(A), "B": from_array(B)}
    target = Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=shape, scale=0.5, tensors=factors)
    return Adapter(targets=(target,), base=Base(**base))


def change(adapter: Adapter) -> np.ndarray:
    """s·B·A in float64."""
    tensors = adapter.targets[0].tensors
    return 0.5 * (to_array(tensors["B"]).astype(np.float64) @ to_array(tensors["A"]).astype(np.float64))


@pytest.mark.parametrize("name", SCHEMES)
def test_the_sum_is_made_on_the_dequantized_weight_and_rounded_once(tmp_path: Path, name: str) -> None:
    """The output is an unquantized checkpoint, and the receipt says what it was made from."""
    base = write_checkpoint(tmp_path / "base", name, **{"n.weight": from_array(np.arange(4, dtype=np.float16))})
    adapter = lora("m.weight", base.shape)
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    written = open_container(tmp_path / "out" / "model.safetensors")
    _, _, expected = vector(name)
    assert set(written.entries) - {"m.bias"} == {"m.weight", "n.weight"}
    assert written.entries["m.weight"].dtype == expected.dtype
    exact = base.astype(np.float64) + change(adapter)
    nearest = round_to(exact, expected.dtype)
    made = to_array(written.tensor("m.weight"))
    ulps = np.abs(made.view(f"i{made.itemsize}").astype(np.int64) - nearest.view(f"i{made.itemsize}").astype(np.int64))
    assert ulps.max() <= 1
    assert np.count_nonzero(ulps) <= 0.001 * ulps.size + 1  # the sum is in float32
    assert to_array(written.tensor("n.weight")).tolist() == [0, 1, 2, 3]
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" in json.loads((tmp_path / "base" / "config.json").read_text())
    assert receipt.view is not None
    assert any("merged into the values that it stands for" in note for note in receipt.notes)
    assert json.loads((tmp_path / "out" / "loreg-receipt.json").read_text())["view"] == receipt.view


def test_a_weight_that_no_target_changes_is_dequantized_all_the_same(tmp_path: Path) -> None:
    """One checkpoint is not half quantized."""
    base = write_checkpoint(tmp_path / "base", "nf4", **{"n.weight": from_array(np.ones((4, 6), np.float16))})
    merge_checkpoint(lora("n.weight", (4, 6)), tmp_path / "base", tmp_path / "out")
    written = open_container(tmp_path / "out" / "model.safetensors")
    assert bytes(written.tensor("m.weight").data) == bytes(as_bytes(base))


def test_dtype_and_retention_are_those_of_any_merge(tmp_path: Path) -> None:
    """Fidelity counts against the dequantized base."""
    base = write_checkpoint(tmp_path / "base", "nf4-double")
    adapter = lora("m.weight", base.shape)
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", MergeOptions(dtype="F32"))
    made = to_array(open_container(tmp_path / "out" / "model.safetensors").tensor("m.weight"))
    exact = base.astype(np.float64) + change(adapter)
    assert np.abs(made - exact).max() <= 2**-22
    fidelity = receipt.tensors[0].fidelity
    assert fidelity is not None
    assert fidelity.relative_error < 1e-5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("view", "warned"),
    [(None, True), ({"scheme": "nf4"}, False), ({"scheme": "nf4", "double": False}, True), ({"scheme": "awq"}, True)],
)
def test_the_view_that_the_adapter_was_trained_on_is_said(tmp_path: Path, view: dict | None, warned: bool) -> None:
    """P-049: the same is noted, another or none is one warning."""
    base = write_checkpoint(tmp_path / "base", "nf4-double")
    adapter = lora("m.weight", base.shape, view=view or {})
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", MergeOptions(dtype="F32"))
    about = [said for said in (*receipt.notes, *receipt.warnings) if "trained on" in said and "adapter" in said]
    assert len(about) == 1, about
    assert (about[0] in receipt.warnings) is warned


def test_fingerprints_prove_nothing_about_a_quantized_base(tmp_path: Path) -> None:
    """Those of the unquantized weights cannot be found, and are not said to be others; exact is refused."""
    base = write_checkpoint(tmp_path / "base", "nf4")
    plain = lora("m.weight", base.shape)
    target = replace(plain.targets[0], fingerprint=Digest.of(b"of the original"))
    adapter = Adapter(targets=(target,), base=plain.base)
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    assert receipt.verdict == "same-shapes"
    assert any("fingerprints of 1 target are of unquantized weights" in note for note in receipt.notes)
    with pytest.raises(InvalidInputError, match="M-010"):
        merge_checkpoint(adapter, tmp_path / "base", tmp_path / "exact", MergeOptions(require_exact=True))
    assert not (tmp_path / "exact").exists()


def test_a_form_that_is_not_read_names_the_base_and_writes_nothing(tmp_path: Path) -> None:
    """The refusal is one line."""
    base = write_checkpoint(tmp_path / "base", "awq")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config["quantization_config"]["version"] = "gemv"
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"base: AWQ weights in the version 'gemv'"):
        merge_checkpoint(lora("m.weight", base.shape), tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parts_may_lie_in_several_shards(tmp_path: Path) -> None:
    """A weight is written where its first part lies, and the index says so."""
    stored, config, expected = vector("gptq-4")
    folder = tmp_path / "base"
    folder.mkdir()
    places = {}
    for number, part in enumerate(sorted(stored.tensors)):
        name = f"model-{number}.safetensors"
        _write(folder / name, {part: stored.tensors[part]})
        places[part] = name
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config))
    adapter = lora("m.weight", expected.shape)
    merge_checkpoint(adapter, folder, tmp_path / "out", workers=2)
    written = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert written["weight_map"]["m.weight"] == places["m.qweight"]
    assert set(written["weight_map"]) <= {"m.weight", "m.bias"}
    assert open_container(tmp_path / "out" / places["m.qweight"]).entries["m.weight"].shape == expected.shape
    assert not open_container(tmp_path / "out" / places["m.scales"]).entries


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    from lora_registry.format.container import encode_tensors

    path.write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))


@pytest.mark.parametrize("dtype", [None, "F32"])
def test_a_gguf_file_becomes_a_safetensors_file(tmp_path: Path, dtype: str | None) -> None:
    """Under transformers' names, in BF16 by itself; rows of queries are where transformers has them."""
    path = write_gguf(tmp_path / "model.gguf", "llama")
    name = "model.layers.0.self_attn.q_proj.weight"
    adapter = lora(name, (64, 64), view={"scheme": "gguf"})
    receipt = merge_checkpoint(adapter, path, tmp_path / "out.safetensors", MergeOptions(dtype=dtype))
    written = open_container(tmp_path / "out.safetensors")
    stored = open_gguf(path).weights["blk.0.attn_q.weight"].rows(0, 64).reshape(4, 8, 2, 64)
    weight = stored.swapaxes(1, 2).reshape(64, 64).astype(np.float64)
    expected = round_to(weight + change(adapter), dtype or "BF16")
    assert np.array_equal(to_array(written.tensor(name)), expected)
    assert written.entries["model.norm.weight"].dtype == "F32"
    assert "blk.0.attn_q.weight" not in written.entries
    assert [(record.name, record.size) for record in receipt.inputs] == [("model.gguf", path.stat().st_size)]
    assert receipt.view == {"scheme": "gguf", "types": "Q8_0"}


def test_the_command_says_what_it_merged_into(tmp_path: Path) -> None:
    """The note, and the warning, stand on the terminal."""
    base = write_checkpoint(tmp_path / "base", "fp8")
    write_adapter(lora("m.weight", base.shape), tmp_path / "adapter.safetensors")
    arguments = ["merge", str(tmp_path / "adapter.safetensors"), "--base", str(tmp_path / "base")]
    result = CliRunner().invoke(main, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "the base is quantized by fp8 (block [32, 32])" in " ".join(result.output.split())
    assert "nothing says that the adapter was trained on it so" in " ".join(result.output.split())
