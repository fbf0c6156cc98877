"""A merge is done again from its receipt: the same bytes, or nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig

from lora_registry.adapter import Adapter
from lora_registry.errors import (
    ConflictError,
    IntegrityError,
    InvalidInputError,
    LoregError,
    NotFoundError,
    UnsupportedError,
)
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.replay import replay

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "float32": {"dtype": "F32"},
    "types by pattern": {"dtype": ["touched=F32", "*norm*=F16"]},
    "both": {"tied": "both"},
}


def content(folder: Path) -> dict[str, bytes]:
    """Every file."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def tied(peft_merge: Any) -> Adapter:
    """An adapter that changes a tied embedding."""
    adapter, _ = peft_merge("llama-tied", LoraConfig(r=4, lora_alpha=7, target_modules=["q_proj", "embed_tokens"]))
    return adapter


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_replay_gives_the_same_bytes(
    options: dict[str, Any], tied: Adapter, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Every option is in the receipt, so that output and receipt come out alike, with any number of workers."""
    merge_checkpoint(tied, tiny_dir("llama-tied"), tmp_path / "first", MergeOptions(**options), workers=1)
    replay(tmp_path / "first" / "loreg-receipt.json", tied, tiny_dir("llama-tied"), tmp_path / "again", workers=3)
    assert content(tmp_path / "again") == content(tmp_path / "first")


def test_one_file_is_replayed_under_another_name(
    peft_merge: Any, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """The name of an output file is no part of what it is."""
    adapter, _ = peft_merge("cnn", LoraConfig(r=2, target_modules="all-linear"))
    base = tiny_dir("cnn") / "model.safetensors"
    merge_checkpoint(adapter, base, tmp_path / "first.safetensors")
    replay(tmp_path / "first.safetensors.receipt.json", adapter, base, tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "first.safetensors").read_bytes()
    assert (tmp_path / "again.safetensors.receipt.json").is_file()


def edited(folder: Path, name: str, **changes: Any) -> Path:
    """A receipt that says something else."""
    said = json.loads((folder / "loreg-receipt.json").read_text())
    path = folder.with_name(name)
    path.write_text(json.dumps({**said, **changes}))
    return path


def test_what_differs_is_refused_and_nothing_is_left(
    tied: Adapter, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Another adapter, base, option or output, and receipts that this program cannot follow."""
    base = tmp_path / "base"
    shutil.copytree(tiny_dir("llama-tied"), base)
    merge_checkpoint(tied, base, tmp_path / "first")
    receipt = tmp_path / "first" / "loreg-receipt.json"
    said = json.loads(receipt.read_text())
    options = said["options"]
    outputs = [{**said["outputs"][0], "digest": "sha256:" + 64 * "0"}, *said["outputs"][1:]]
    other = replace(tied, targets=(replace(tied.targets[0], scale=0.5), *tied.targets[1:]))
    cases: list[tuple[type[LoregError], Path, Adapter, Path]] = [
        (IntegrityError, receipt, other, base),
        (IntegrityError, receipt, tied, tmp_path / "first"),
        (IntegrityError, edited(tmp_path / "first", "both.json", options={**options, "tied": "both"}), tied, base),
        (NotFoundError, tmp_path / "none.json", tied, base),
    ]
    for number, (changes, error) in enumerate(
        [
            ({"outputs": outputs}, IntegrityError),
            ({"outputs": said["outputs"][1:]}, IntegrityError),
            ({"options": {**options, "more": 1}}, UnsupportedError),
            ({"options": {}}, UnsupportedError),
            ({"options": {**options, "dtype": 5}}, UnsupportedError),
            ({"options": {**options, "dtype": ["F32", None]}}, UnsupportedError),
            ({"options": {**options, "tied": "none"}}, UnsupportedError),
            ({"options": {**options, "tied": []}}, UnsupportedError),
            ({"options": {**options, "device": "tpu"}}, UnsupportedError),
            ({"options": {**options, "allow_new": 1}}, UnsupportedError),
            ({"kind": "onnx"}, UnsupportedError),
            ({"loreg_receipt": 2}, UnsupportedError),
            ({"inputs": [{**said["inputs"][0], "name": "../x"}]}, InvalidInputError),
            ({"inputs": [{**said["inputs"][0], "digest": None}]}, UnsupportedError),
            ({"inputs": []}, InvalidInputError),
        ]
    ):
        cases.append((error, edited(tmp_path / "first", f"{number}.json", **changes), tied, base))
    before = sorted(tmp_path.iterdir())
    for error, path, adapter, folder in cases:
        with pytest.raises(error) as caught:
            replay(path, adapter, folder, tmp_path / "again")
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(ConflictError):
        replay(receipt, tied, base, tmp_path / "first")
    (base / "config.json").write_text("{}")
    with pytest.raises(IntegrityError):
        replay(receipt, tied, base, tmp_path / "again")
