"""``loreg merge`` into an ONNX model: what it would do, and the same merge again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import genai_model
import pytest
from click.testing import CliRunner, Result
from peft import LoraConfig
from peft_adapters import make_peft_adapter

from lora_registry.cli import main
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError, UsageError


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Queries and values of both layers."""
    folder = tmp_path_factory.mktemp("adapter") / "peft"
    make_peft_adapter(genai_model.torch_model(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"]), folder)
    return folder


def merge(adapter: Path, output: Path, *options: str, base: Path = genai_model.MODEL) -> Result:
    return CliRunner().invoke(main, ["merge", str(adapter), "--base", str(base), "-o", str(output), *options])


def test_a_dry_run_tells_where_every_target_is_and_writes_nothing(adapter: Path, tmp_path: Path) -> None:
    """The files and their sizes, whether the graph stays the base's, and the evidence for each target."""
    result = merge(adapter, tmp_path / "model.onnx", "--dry-run", "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["graph"]) == (0, "kept")
    assert told["files"] == [
        {"name": "model.onnx.data", "size": genai_model.MODEL.with_suffix(".onnx.data").stat().st_size}
    ]
    assert len(told["targets"]) == 4
    (place,) = told["targets"]["model.layers.0.self_attn.v_proj.weight"]["initializers"]
    assert place["slice"] == {"axis": 1, "start": 96, "run": 32}
    assert "graph" in merge(adapter, tmp_path / "other.onnx", "--dry-run").stdout
    assert list(tmp_path.iterdir()) == []


def test_a_replay_gives_the_same_files_and_keeps_nothing_else(adapter: Path, tmp_path: Path) -> None:
    """Byte for byte; under another name, into a taken place, or from another base it is refused."""
    for name in ("one", "two", "three", "base"):
        (tmp_path / name).mkdir()
    assert merge(adapter, tmp_path / "one" / "model.onnx", "--workers", "1").exit_code == 0
    receipt = tmp_path / "one" / "model.onnx.receipt.json"
    assert merge(adapter, tmp_path / "two" / "model.onnx", "--replay", str(receipt)).exit_code == 0
    one, two = ({p.name: Digest.of_file(p) for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert one == two
    assert len(one) == 3
    for output, code in (("two/model.onnx", ConflictError), ("three/renamed.onnx", UsageError)):
        assert merge(adapter, tmp_path / output, "--replay", str(receipt)).exit_code == code.exit_code
    for file in (genai_model.MODEL, genai_model.MODEL.with_suffix(".onnx.data")):
        shutil.copyfile(file, tmp_path / "base" / file.name)
    with (tmp_path / "base" / "model.onnx.data").open("r+b") as stream:
        stream.write(b"\1")
    refused = merge(
        adapter, tmp_path / "three" / "model.onnx", "--replay", str(receipt), base=tmp_path / "base" / "model.onnx"
    )
    assert refused.exit_code == IntegrityError.exit_code
    assert list((tmp_path / "three").iterdir()) == []


def test_without_digests_there_is_no_replay(adapter: Path, tmp_path: Path) -> None:
    """--no-hash is faster, and the receipt says so."""
    (tmp_path / "again").mkdir()
    assert merge(adapter, tmp_path / "model.onnx", "--no-hash", "--no-sync").exit_code == 0
    receipt = tmp_path / "model.onnx.receipt.json"
    assert json.loads(receipt.read_text())["outputs"][1]["digest"] is None
    assert merge(adapter, tmp_path / "again" / "model.onnx", "--replay", str(receipt)).exit_code == 8


@pytest.mark.parametrize("option", [["--dtype", "F16"], ["--allow-new"], ["--resume"]])
def test_options_for_checkpoints_are_refused(option: list[str], adapter: Path, tmp_path: Path) -> None:
    """What means nothing for a graph is not ignored."""
    result = merge(adapter, tmp_path / "model.onnx", *option)
    assert result.exit_code == UsageError.exit_code
    assert option[0] in result.stderr
