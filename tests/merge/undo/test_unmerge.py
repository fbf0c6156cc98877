"""A merge is undone byte by byte, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from undone import content, there_and_back

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LoregError,
    MachineError,
    NotAllowedError,
    NotFoundError,
    UnsupportedError,
    UsageError,
)
from lora_registry.format.canonical import encode
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.undo.block import difference, restored
from lora_registry.merge.undo.header import MAGIC
from lora_registry.merge.undo.patch import write_undo
from lora_registry.merge.undo.unmerge import copy_base, unmerge
from lora_registry.ops.arrays import from_array, numpy_dtype

FOLDERS = Callable[[str], Path]


def bfloat16(folder: Path, out: Path, **options: Any) -> Path:
    """The model in ``folder`` in bfloat16, saved again."""
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(out, **options)
    return out


@pytest.mark.parametrize("dtype", [None, "F32", "F16", "touched=F32"])
def test_a_merge_is_undone_whatever_type_it_wrote(dtype: str | None, peft_merge, tiny_dir, tmp_path: Path) -> None:
    """Header, configuration and index come back too, and tensors that were converted with their last bit."""
    base = bfloat16(tiny_dir("llama-untied"), tmp_path / "base", max_shard_size="40KB")
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    merge_checkpoint(adapter, base, tmp_path / "merged", MergeOptions(dtype=dtype))
    there_and_back(base, tmp_path / "merged", tmp_path)


@pytest.mark.parametrize("tied", ["untie", "both"])
def test_tied_and_untied_tensors_come_back(tied: Any, peft_merge, tiny_dir, tmp_path: Path) -> None:
    """A head that the merge added is gone again, and the configuration says again that it is tied."""
    base = bfloat16(tiny_dir("llama-tied"), tmp_path / "base")
    config = LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"])
    adapter, _ = peft_merge("llama-tied", config)
    merge_checkpoint(adapter, base, tmp_path / "merged", MergeOptions(tied=tied))
    there_and_back(base, tmp_path / "merged", tmp_path)


def test_what_another_program_merged_is_undone(tiny_dir, tmp_path: Path) -> None:
    """PEFT leaves no receipt and shards in its own way; the patch needs neither."""
    from peft import get_peft_model

    base = bfloat16(tiny_dir("llama-tied"), tmp_path / "base", max_shard_size="40KB")
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    there_and_back(base, tmp_path / "merged", tmp_path)


def test_one_file_is_undone_under_any_name(plain: tuple[Path, Path, Adapter], tmp_path: Path) -> None:
    """A base that is one file comes back as one."""
    base, merged, _ = plain
    patch = tmp_path / "p.undo"
    write_undo(base, merged, patch)
    merged.with_name("merged.safetensors.receipt.json").unlink()
    moved = merged.rename(tmp_path / "moved.safetensors")
    unmerge(moved, patch, tmp_path / "again.safetensors")
    assert content(tmp_path / "again.safetensors") == content(base)


def test_a_tensor_that_was_added_is_gone_again(tmp_path: Path) -> None:
    """A classifier that the adapter brought is not in the base."""
    from safetensors.numpy import save_file

    save_file({"w": np.ones((4, 4), np.float32)}, tmp_path / "base.safetensors")
    value = from_array(np.ones((2, 4), np.float32))
    target = Target(name="score", kind=Kind.FULL, layout=(), shape=(2, 4), tensors={"value": value})
    merged = tmp_path / "merged.safetensors"
    merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base.safetensors", merged, MergeOptions(allow_new=True))
    there_and_back(tmp_path / "base.safetensors", merged, tmp_path)


FLOATS = ["F64", "F32", "F16", "BF16"]


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(FLOATS), st.sampled_from(FLOATS), st.data())
def test_differences_are_exact_for_all_bits(source: str, target: str, data: st.DataObject) -> None:
    """Infinities, NaN with any payload, subnormals and both zeros come back, between any two types."""
    count = data.draw(st.integers(1, 40))
    sizes = [numpy_dtype(name).itemsize for name in (source, target)]
    merged, base = (
        np.frombuffer(data.draw(st.binary(min_size=count * size, max_size=count * size)), np.uint8) for size in sizes
    )
    elements = merged.view(numpy_dtype(source))
    assert restored(difference(base, elements, target), elements, target).tobytes() == base.tobytes()


def test_the_patch_of_a_small_change_is_small(tmp_path: Path) -> None:
    """A change of one percent of bfloat16 weights takes less than a third of their bytes, one of a few rows none."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    weight = (random.normal(size=(1024, 1024)) * 0.02).astype(ml_dtypes.bfloat16)
    save_file({"w": weight}, tmp_path / "base.safetensors")
    wanted = weight.astype(np.float32) + (random.normal(size=weight.shape) * 2e-4).astype(np.float32)
    save_file({"w": wanted.astype(ml_dtypes.bfloat16)}, tmp_path / "all.safetensors")
    rows = weight.copy()
    rows[7] = 0
    save_file({"w": rows}, tmp_path / "rows.safetensors")
    every = write_undo(tmp_path / "base.safetensors", tmp_path / "all.safetensors", tmp_path / "all.undo")
    few = write_undo(tmp_path / "base.safetensors", tmp_path / "rows.safetensors", tmp_path / "rows.undo")
    assert every.changed == few.changed == weight.nbytes
    assert every.patch < weight.nbytes / 3
    assert few.patch < weight.nbytes / 80


@pytest.fixture
def plain(tmp_path: Path) -> tuple[Path, Path, Adapter]:
    """A base of one file, its merge, and the adapter."""
    from safetensors.numpy import save_file

    random = np.random.default_rng(0)
    base = tmp_path / "base.safetensors"
    weights = {name: random.normal(size=(64, 32)).astype(np.float32) for name in ("v", "w")}
    save_file(weights, base)
    factors = {
        "A": from_array(random.normal(size=(2, 32)).astype(np.float32)),
        "B": from_array(random.normal(size=(64, 2)).astype(np.float32)),
    }
    target = Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=(64, 32), tensors=factors)
    adapter = Adapter(targets=(target,))
    merged = tmp_path / "merged.safetensors"
    merge_checkpoint(adapter, base, merged)
    return base, merged, adapter


def refused(kind: type[LoregError], merged: Path, patch: Path, out: Path) -> str:
    """Undoing fails in one line, and writes nothing."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(kind) as caught:
        unmerge(merged, patch, out)
    assert sorted(out.parent.iterdir()) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_merge_is_refused(plain: tuple[Path, Path, Adapter], tmp_path: Path) -> None:
    """A patch turns its own merged checkpoint back, and no other."""
    base, merged, adapter = plain
    write_undo(base, merged, tmp_path / "p.undo")
    other = tmp_path / "other.safetensors"
    other.write_bytes(merged.read_bytes()[:-1] + b"\x01")
    assert "not the file of" in refused(IntegrityError, other, tmp_path / "p.undo", tmp_path / "o.safetensors")
    other.write_bytes(merged.read_bytes() + b"\x01")
    assert "bytes" in refused(IntegrityError, other, tmp_path / "p.undo", tmp_path / "o.safetensors")
    merge_checkpoint(adapter, merged, tmp_path / "twice.safetensors")
    message = refused(IntegrityError, tmp_path / "twice.safetensors", tmp_path / "p.undo", tmp_path / "o.safetensors")
    assert "another merge" in message
    refused(NotFoundError, tmp_path / "none.safetensors", tmp_path / "p.undo", tmp_path / "o.safetensors")
    refused(NotFoundError, merged, tmp_path / "none.undo", tmp_path / "o.safetensors")


def test_places_that_are_none_are_refused(plain: tuple[Path, Path, Adapter], tmp_path: Path) -> None:
    """What exists stays, and a file is not called like a folder."""
    base, merged, _ = plain
    patch = tmp_path / "p.undo"
    write_undo(base, merged, patch)
    refused(ConflictError, merged, patch, base)
    refused(UsageError, merged, patch, tmp_path / "folder")
    with pytest.raises(ConflictError):
        write_undo(base, merged, patch)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(base.read_bytes())
    with pytest.raises(NotAllowedError):
        write_undo(tmp_path / "model", merged, tmp_path / "model" / "p.undo")


def test_a_truncated_patch_is_refused_at_every_byte(plain: tuple[Path, Path, Adapter], tmp_path: Path) -> None:
    """Whatever is cut off, and whatever is added, shows."""
    base, merged, _ = plain
    write_undo(base, merged, tmp_path / "p.undo")
    whole = (tmp_path / "p.undo").read_bytes()
    broken = tmp_path / "broken.undo"
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        broken.write_bytes(whole[:length])
        refused(InvalidInputError, merged, broken, tmp_path / "o.safetensors")
    broken.write_bytes(whole + b"\0")
    refused(InvalidInputError, merged, broken, tmp_path / "o.safetensors")


def test_a_flipped_bit_is_refused(plain: tuple[Path, Path, Adapter], tmp_path: Path) -> None:
    """Compression, block or digest: no change of the patch gives another base."""
    base, merged, _ = plain
    write_undo(base, merged, tmp_path / "p.undo")
    whole = (tmp_path / "p.undo").read_bytes()
    start = len(MAGIC) + 8 + int.from_bytes(whole[len(MAGIC) : len(MAGIC) + 8], "little")
    broken = tmp_path / "broken.undo"
    for place in [*range(start, len(whole), 131), start + 5]:
        broken.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        refused(LoregError, merged, broken, tmp_path / "o.safetensors")


def edited(patch: Path, **changes: Any) -> Path:
    """The patch with another header before its blocks."""
    whole = patch.read_bytes()
    start = len(MAGIC) + 8
    end = start + int.from_bytes(whole[len(MAGIC) : start], "little")
    header = {**json.loads(whole[start:end]), **changes}
    text = encode({key: value for key, value in header.items() if value is not None})
    out = patch.with_name("edited.undo")
    out.write_bytes(MAGIC + len(text).to_bytes(8, "little") + text + whole[end:])
    return out


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], type[LoregError]]] = {
    "another version": (lambda header: {"loreg_undo": 2}, UnsupportedError),
    "an unknown field": (lambda header: {"more": 1}, InvalidInputError),
    "a missing field": (lambda header: {"folder": None}, InvalidInputError),
    "a path out of the folder": (
        lambda header: {"base": [{**header["base"][0], "name": "../evil"}], "runs": {"../evil": []}},
        InvalidInputError,
    ),
    "an absolute path": (
        lambda header: {"base": [{**header["base"][0], "name": "/evil"}], "runs": {"/evil": []}},
        InvalidInputError,
    ),
    "a run beyond the merged file": (
        lambda header: {
            "runs": {"base.safetensors": [{"op": "copy", "length": 10**9, "file": "merged.safetensors", "offset": 0}]}
        },
        InvalidInputError,
    ),
    "runs of another length": (
        lambda header: {"runs": {"base.safetensors": [{"op": "literal", "length": 10}]}},
        InvalidInputError,
    ),
    "more than the disk holds": (
        lambda header: {
            "base": [{**header["base"][0], "size": 2**50}],
            "runs": {"base.safetensors": [{"op": "literal", "length": 2**50}]},
        },
        MachineError,
    ),
    "an operation that is none": (
        lambda header: {"runs": {"base.safetensors": [{"op": "run", "length": header["base"][0]["size"]}]}},
        InvalidInputError,
    ),
    "a digest that is none": (
        lambda header: {"base": [{**header["base"][0], "digest": "sha256:0"}]},
        InvalidInputError,
    ),
    "other merged files": (
        lambda header: {"merged": [{**header["merged"][0], "digest": "sha256:" + 64 * "0"}]},
        IntegrityError,
    ),
    "another base": (
        lambda header: {"base": [{**header["base"][0], "digest": "sha256:" + 64 * "0"}]},
        IntegrityError,
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_header_is_refused(name: str, plain: tuple[Path, Path, Adapter], tmp_path: Path) -> None:
    """Nothing is written that the header did not state, nor outside of the output."""
    base, merged, _ = plain
    patch = tmp_path / "p.undo"
    write_undo(base, merged, patch)
    start = len(MAGIC) + 8
    header = json.loads(
        patch.read_bytes()[start : start + int.from_bytes(patch.read_bytes()[len(MAGIC) : start], "little")]
    )
    change, error = HOSTILE[name]
    refused(error, merged, edited(patch, **change(header)), tmp_path / "o.safetensors")


def test_a_block_that_grows_is_refused(plain: tuple[Path, Path, Adapter], tmp_path: Path) -> None:
    """A block of zeros that unpacks to a gigabyte is not unpacked beyond the length of its run."""
    import tracemalloc
    import zlib

    base, merged, _ = plain
    patch = tmp_path / "p.undo"
    write_undo(base, merged, patch)
    whole = patch.read_bytes()
    start = len(MAGIC) + 8 + int.from_bytes(whole[len(MAGIC) : len(MAGIC) + 8], "little")
    bomb = zlib.compress(bytes(1 << 22), 9)
    assert len(bomb) < 64 * 32 * 4
    bad = tmp_path / "bomb.undo"
    bad.write_bytes(whole[:start] + len(bomb).to_bytes(4, "little") + bytes(32) + bomb)
    tracemalloc.start()
    refused(InvalidInputError, merged, bad, tmp_path / "o.safetensors")
    assert tracemalloc.get_traced_memory()[1] < 3 << 20
    tracemalloc.stop()


def test_a_base_at_hand_is_copied_and_checked(peft_merge, tiny_dir, tmp_path: Path) -> None:
    """The files of the receipt come back, and a base or a merge that is another one is refused."""
    base = bfloat16(tiny_dir("llama-tied"), tmp_path / "base")
    adapter, _ = peft_merge("llama-tied", LoraConfig(r=4, target_modules=["q_proj"]))
    merged = tmp_path / "merged"
    merge_checkpoint(adapter, base, merged)
    copy_base(merged, base, tmp_path / "again")
    assert content(tmp_path / "again") == content(base)
    with pytest.raises(IntegrityError):
        copy_base(merged, merged, tmp_path / "wrong")
    (merged / "config.json").write_text("{}")
    with pytest.raises(IntegrityError):
        copy_base(merged, base, tmp_path / "wrong")
    (merged / "loreg-receipt.json").unlink()
    with pytest.raises(NotFoundError):
        copy_base(merged, base, tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()
