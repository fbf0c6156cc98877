"""Merges into bases that are not stored as plain numbers are undone byte by byte, and done again from a receipt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gguf_files import model as write_gguf
from golden_vectors import NAMES, vector, write_checkpoint
from quantized_merges import OTHER, lora
from undone import content, there_and_back

from lora_registry.cli import main
from lora_registry.errors import IntegrityError, UsageError
from lora_registry.format.container import encode_tensors
from lora_registry.format.writer import write_adapter
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.replay import replay
from lora_registry.merge.undo.patch import write_undo
from lora_registry.merge.undo.unmerge import copy_base, unmerge
from lora_registry.ops.arrays import from_array, to_array


@pytest.mark.parametrize("name", NAMES)
def test_a_quantized_base_comes_back_byte_by_byte(name: str, tmp_path: Path) -> None:
    """Codes, scales, states and the configuration that says how it was quantized; from the patch and from the base."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    merge_checkpoint(lora("m.weight", base.shape), tmp_path / "base", tmp_path / "merged")
    there_and_back(tmp_path / "base", tmp_path / "merged", tmp_path)
    copy_base(tmp_path / "merged", tmp_path / "base", tmp_path / "copied")
    assert content(tmp_path / "copied") == content(tmp_path / "base")


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Output and receipt, with any number of workers; another base in the same scheme is refused."""
    base = write_checkpoint(tmp_path / "base", name, **OTHER)
    adapter = lora("m.weight", base.shape)
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "first", MergeOptions(dtype="touched=F32"), workers=1)
    receipt = tmp_path / "first" / "loreg-receipt.json"
    replay(receipt, adapter, tmp_path / "base", tmp_path / "again", workers=3)
    assert content(tmp_path / "again") == content(tmp_path / "first")
    write_checkpoint(tmp_path / "other", name, **{"n.weight": from_array(np.ones((4, 6), np.float16))})
    with pytest.raises(IntegrityError, match="not the file of"):
        replay(receipt, adapter, tmp_path / "other", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_a_gguf_file_comes_back_and_is_replayed(tmp_path: Path) -> None:
    """Under a name that ends as the base's did, and under no other."""
    base = write_gguf(tmp_path / "model.gguf", "llama")
    adapter = lora("model.layers.0.self_attn.q_proj.weight", (64, 64))
    merged = tmp_path / "merged.safetensors"
    merge_checkpoint(adapter, base, merged)
    there_and_back(base, merged, tmp_path)
    copy_base(merged, base, tmp_path / "copied.gguf")
    assert content(tmp_path / "copied.gguf") == content(base)
    with pytest.raises(UsageError, match=r"the base is one file, called \*.gguf"):
        unmerge(merged, tmp_path / "patch.undo", tmp_path / "again.safetensors")
    replay(tmp_path / "merged.safetensors.receipt.json", adapter, base, tmp_path / "replayed.safetensors")
    assert content(tmp_path / "replayed.safetensors") == content(merged)


@pytest.mark.parametrize("folder", [False, True])
def test_a_pickled_base_comes_back(folder: bool, tmp_path: Path) -> None:
    """What lies around the tensors comes from the patch; tensors that share their bytes are taken once."""
    torch.manual_seed(0)
    shared = torch.randn(64, 48).bfloat16()
    state = {"w": torch.randn(64, 48).bfloat16(), "a": shared, "b": shared, "v": torch.arange(9)}
    base, merged = tmp_path / "base.bin", tmp_path / "merged.safetensors"
    if folder:
        (tmp_path / "base").mkdir()
        base, merged = tmp_path / "base" / "pytorch_model.bin", tmp_path / "merged"
    torch.save(state, base)
    base = base.parent if folder else base
    merge_checkpoint(lora("w", (64, 48)), base, merged)
    there_and_back(base, merged, tmp_path)


@pytest.mark.parametrize(("name", "part"), [("nf4", "m.weight"), ("gptq-4", "m.qweight"), ("int8", "m.weight")])
def test_the_patch_of_weights_that_stay_quantized_is_small(name: str, part: str, tmp_path: Path) -> None:
    """Of a checkpoint in the scheme of the base, the patch holds how the codes differ, and not the codes."""
    stored, config, _ = vector(name)
    tensors = {**stored.tensors, "n.weight": from_array(np.zeros((512, 512), np.float16))}
    codes = np.random.default_rng(0).integers(0, 255, (1 << 18,), np.uint8)
    few = codes.copy()
    few[::50] ^= 16
    kind = to_array(tensors[part]).dtype
    for folder, values in (("base", codes), ("merged", few)):
        (tmp_path / folder).mkdir()
        own = {**tensors, part: from_array(values.view(kind).reshape(512, -1))}
        path = tmp_path / folder / "model.safetensors"
        path.write_bytes(b"".join(map(bytes, encode_tensors(own, {}))))
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
    size = write_undo(tmp_path / "base", tmp_path / "merged", tmp_path / "small.undo")
    assert size.changed == codes.nbytes
    assert size.patch < codes.nbytes / 8
    there_and_back(tmp_path / "base", tmp_path / "merged", tmp_path)


def test_gguf_files_of_one_layout_differ_where_their_pages_do(tmp_path: Path) -> None:
    """A file in the types of the base is compared by pages, and the patch holds those that differ."""
    base = write_gguf(tmp_path / "base.gguf", "llama")
    large = base.read_bytes() + np.random.default_rng(0).bytes(1 << 20)
    base.write_bytes(large)
    merged = tmp_path / "merged.gguf"
    merged.write_bytes(large[: 3 << 17] + bytes(100) + large[(3 << 17) + 100 :])
    size = write_undo(base, merged, tmp_path / "small.undo")
    assert size.changed == 1 << 16
    assert size.patch < 1 << 12
    there_and_back(base, merged, tmp_path)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_the_command_writes_the_patch_and_says_how_large_it_is(kind: str, tmp_path: Path) -> None:
    """Against the base, which a merge out of a quantization does not hold in its parts."""
    if kind == "gguf":
        base, out, again = write_gguf(tmp_path / "base.gguf", "llama"), tmp_path / "m.safetensors", tmp_path / "b.gguf"
        adapter = lora("model.layers.0.self_attn.q_proj.weight", (64, 64))
    else:
        base, out, again = tmp_path / "base", tmp_path / "merged", tmp_path / "again"
        adapter = lora("m.weight", write_checkpoint(base, "gptq-4").shape)
    write_adapter(adapter, tmp_path / "a.safetensors")
    patch = tmp_path / "p.undo"
    arguments = ["merge", str(tmp_path / "a.safetensors"), "--base", str(base), "-o", str(out)]
    result = CliRunner().invoke(main, [*arguments, "--keep-undo", str(patch)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "% of the base" in said
    result = CliRunner().invoke(main, ["unmerge", str(out), "--undo", str(patch), "-o", str(again)])
    assert result.exit_code == 0, result.output
    assert content(again) == content(base)
    result = CliRunner().invoke(main, ["unmerge", str(out), "--base", str(base), "--save-undo", str(patch) + "2"])
    assert "% of the base" in " ".join(result.output.split())
    result = CliRunner().invoke(
        main, ["unmerge", str(out), "--base", str(base), "--save-undo", str(patch) + "3", "--json"]
    )
    told = json.loads(result.output)
    assert told["size"] == patch.stat().st_size
    assert told["base"] == sum(path.stat().st_size for path in ([base] if kind == "gguf" else base.iterdir()))
