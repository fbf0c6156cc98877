"""loreg onnx patch, apply and revert, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from lpatch_cases import WIDTH, save_model
from onnx_models import linear_adapter

from lora_registry.adapter import Adapter
from lora_registry.cli import main
from lora_registry.format.writer import write_adapter
from lora_registry.merge.onnx.model import merge_onnx


def loreg(*words: object, exit_code: int = 0) -> Result:
    """What the command prints, once its exit code is the one that is expected."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def case(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, its merge with an adapter, and the adapter as a native file."""
    base = save_model(tmp_path / "base" / "base.onnx")
    adapter = Adapter(targets=(linear_adapter("b.weight", (WIDTH, WIDTH), layout=("in", "out")),))
    write_adapter(adapter, tmp_path / "a.loreg.safetensors")
    (tmp_path / "merged").mkdir()
    (tmp_path / "out").mkdir()
    merge_onnx(adapter, base, tmp_path / "merged" / "merged.onnx")
    return base, tmp_path / "merged" / "merged.onnx", tmp_path / "a.loreg.safetensors"


@pytest.mark.parametrize("how", ["adapter", "extract", "bits"])
def test_there_and_back(how: str, case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """With the adapter, with factors that are found, and with neither; the size is told, and the bytes come back."""
    base, merged, adapter = case
    patch = tmp_path / "x.lpatch"
    options = {"adapter": ["--adapter", adapter], "extract": ["--extract"], "bits": []}[how]
    lines = loreg("onnx", "patch", base, merged, "-o", patch, *options).stdout.splitlines()
    assert lines[0] == f"wrote {patch}"
    assert ("factors of 1 tensor" in lines[2]) == (how != "bits")
    assert "2 files" in loreg("onnx", "apply", base, patch, "-o", tmp_path / "out" / "m.onnx").stdout
    said = json.loads(loreg("onnx", "revert", merged, patch, "-o", tmp_path / "out" / "b.onnx", "--json").stdout)
    assert [record["name"] for record in said["files"]] == ["base.onnx", "weights.bin"]
    for made, wanted in (
        ("m.onnx", merged),
        ("merged.onnx.data", merged.with_name("merged.onnx.data")),
        ("b.onnx", base),
        ("weights.bin", base.with_name("weights.bin")),
    ):
        assert (tmp_path / "out" / made).read_bytes() == wanted.read_bytes()


def test_a_figure_for_programs_and_a_note_for_people(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """JSON has the parts of the size; an adapter that explains nothing is named."""
    base, merged, adapter = case
    found = json.loads(
        loreg("onnx", "patch", base, merged, "-o", tmp_path / "x", "--adapter", adapter, "--json").stdout
    )
    assert found["patch"] == (tmp_path / "x").stat().st_size
    assert (found["products"], found["unexplained"]) == (1, [])
    other = Adapter(targets=(linear_adapter("a.weight", (WIDTH, WIDTH), layout=("in", "out")),))
    write_adapter(other, tmp_path / "other.loreg.safetensors")
    options = ["--adapter", tmp_path / "other.loreg.safetensors"]
    assert (
        "a.weight: no product of its factors gives what was merged"
        in loreg("onnx", "patch", base, merged, "-o", tmp_path / "y", *options).stderr
    )


def test_what_is_refused_has_its_exit_code(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Usage, nothing there, a name that is taken, another base, no patch, the same model."""
    base, merged, adapter = case
    patch = tmp_path / "x.lpatch"
    loreg("onnx", "patch", base, merged, "-o", patch, "--adapter", adapter, "--extract", exit_code=2)
    loreg("onnx", "patch", base, tmp_path / "none.onnx", "-o", patch, exit_code=3)
    loreg("onnx", "patch", base, base, "-o", patch, exit_code=8)
    loreg("onnx", "patch", base, merged, "-o", base, "--overwrite", exit_code=5)
    assert not patch.exists()
    loreg("onnx", "patch", base, merged, "-o", patch)
    loreg("onnx", "patch", base, merged, "-o", patch, exit_code=4)
    loreg("onnx", "apply", base, patch, "-o", base, exit_code=4)
    loreg("onnx", "apply", merged, patch, "-o", tmp_path / "out" / "m.onnx", exit_code=7)
    loreg("onnx", "apply", base, adapter, "-o", tmp_path / "out" / "m.onnx", exit_code=8)
    assert list((tmp_path / "out").iterdir()) == []
