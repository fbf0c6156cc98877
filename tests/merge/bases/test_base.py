"""Opening base models: what is broken is said, in one line, before anything is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_registry.errors import InvalidInputError, LoregError, NotFoundError, UnsupportedError
from lora_registry.merge.bases.base import open_base

INDEX = "model.safetensors.index.json"


def sharded(folder: Path) -> Path:
    """Two shards of one tensor each, and their index."""
    folder.mkdir()
    save_file({"a": np.zeros(3, np.float32)}, folder / "one.safetensors")
    save_file({"b": np.zeros(4, np.float32)}, folder / "two.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    return folder


def remove_shard(folder: Path) -> None:
    (folder / "two.safetensors").unlink()


def lie_in_the_index(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "two.safetensors", "b": "two.safetensors"}}))


def store_twice(folder: Path) -> None:
    save_file({"b": np.zeros(4, np.float32), "a": np.zeros(3, np.float32)}, folder / "two.safetensors")


def leave_the_folder(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))


def truncate(folder: Path) -> None:
    data = (folder / "one.safetensors").read_bytes()
    (folder / "one.safetensors").write_bytes(data[:-4])


def break_the_index(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def empty_the_index(folder: Path) -> None:
    (folder / INDEX).write_text("{}")


def break_the_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def add_a_single_file(folder: Path) -> None:
    save_file({"a": np.zeros(3, np.float32)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_shard, "shard two.safetensors is missing"),
        (lie_in_the_index, "'a' is not in two.safetensors"),
        (store_twice, "'a' is both in one.safetensors and in two.safetensors"),
        (leave_the_folder, "is not the name of a file in this folder"),
        (truncate, "truncated"),
        (break_the_index, "not JSON"),
        (empty_the_index, "no weight_map"),
        (break_the_config, "not a JSON object"),
        (add_a_single_file, "which one is the model"),
    ],
)
def test_broken_folders_are_refused(spoil: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    """Every way in which shards, index and configuration can disagree has its line."""
    folder = sharded(tmp_path / "base")
    assert sorted(open_base(folder).names()) == ["a", "b"]
    spoil(folder)
    with pytest.raises(InvalidInputError, match=message):
        open_base(folder)


@pytest.mark.parametrize(
    ("names", "kind", "message"),
    [
        (["training.pt"], UnsupportedError, "only pickled weights that are not called"),
        (["pytorch_model.bin"], UnsupportedError, "no zip file"),
        (["adapter_config.json", "adapter_model.safetensors"], InvalidInputError, "an adapter, not a base model"),
        (["README.md"], InvalidInputError, "no model.safetensors"),
    ],
)
def test_folders_without_weights_are_refused(
    names: list[str], kind: type[LoregError], message: str, tmp_path: Path
) -> None:
    """The reason tells what the folder is instead."""
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(kind, match=message):
        open_base(tmp_path)


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    """No traceback for a misspelt path."""
    with pytest.raises(NotFoundError):
        open_base(tmp_path / "none")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="not a safetensors file"):
        open_base(tmp_path / "model.gguf")


def test_diffusers_names_are_known(tmp_path: Path) -> None:
    """A component folder of diffusers opens like one of transformers."""
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "diffusion_pytorch_model.safetensors")
    assert list(open_base(tmp_path).names()) == ["a"]


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    """The data of a checkpoint may be a hole of a terabyte."""
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}).encode()
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + (1 << 40))
    base = open_base(tmp_path)
    assert base.shape("a") == (1 << 38,)
    assert base.array("a")[123456789] == 0
