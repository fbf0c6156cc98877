"""``loreg merge``: the plan that is only printed, and the options that refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors.numpy import load_file, save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.cli import main
from lora_registry.format.writer import write_adapter
from lora_registry.ops.arrays import from_array

Run = Callable[..., Result]
SHAPE = (40, 30)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run loreg in a folder with a base and an adapter that is far below the grid of bfloat16."""
    monkeypatch.setenv("LOREG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=SHAPE).astype(ml_dtypes.bfloat16) for name in ("w", "kept")}
    (tmp_path / "base").mkdir()
    save_file(weights, tmp_path / "base" / "model.safetensors")
    factors = {"A": rng.normal(size=(2, 30)).astype(np.float32), "B": np.full((40, 2), 1e-4, np.float32)}
    tensors = {role: from_array(array) for role, array in factors.items()}
    target = Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=SHAPE, tensors=tensors)
    write_adapter(Adapter(targets=(target,)), tmp_path / "a.loreg.safetensors")
    return lambda *arguments: CliRunner().invoke(
        main, ["merge", "a.loreg.safetensors", "--base", "base", "-o", "out", *map(str, arguments)]
    )


def test_a_dry_run_prints_the_plan_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    """Files, bytes, tensors, types and room; as JSON, every range."""
    before = sorted(path.name for path in tmp_path.iterdir())
    shown = run("--dry-run")
    assert shown.exit_code == 0
    assert "nothing was written" in shown.stdout
    assert "1 tensor, 2.4 kB" in shown.stdout
    told = json.loads(run("--dry-run", "--json", "--dtype", "touched=F32").stdout)
    assert told["tensors"] == {"w": ["w"]}
    assert told["dtypes"] == {"F32": 1, "BF16": 1}
    ranges = told["files"][0]["ranges"]
    assert {range_["treatment"] for range_ in ranges} == {"header", "copy", "merge"}
    assert next(range_["tensor"] for range_ in ranges if range_["treatment"] == "merge") == "w"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_loss_is_warned_of_or_refused(run: Run, tmp_path: Path) -> None:
    """The warning names the tensor and what to do; the refusal has an exit code of its own, and float32 keeps all."""
    refused = run("--min-retention", "0.9")
    assert refused.exit_code == 7
    assert "w the least" in refused.stderr
    assert not (tmp_path / "out").exists()
    assert run("--min-retention", "0.9", "--dtype", "touched=F32").exit_code == 0
    assert {name: array.dtype.name for name, array in load_file(tmp_path / "out" / "model.safetensors").items()} == {
        "w": "float32",
        "kept": "bfloat16",
    }
    warned = run("--overwrite")
    assert warned.exit_code == 0
    assert "of the change to w is lost in BF16; keep it in float32 (dtype touched=F32), or serve" in warned.stderr


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_base_that_is_not_finite_is_warned_of_and_counts_in_no_figure(run: Run, tmp_path: Path, value: float) -> None:
    """What such a weight was is kept; the tensor is named, and there is no mean of no numbers."""
    path = tmp_path / "base" / "model.safetensors"
    weights = load_file(path)
    save_file(weights | {"w": np.where(np.arange(30) == 3, value, weights["w"]).astype(ml_dtypes.bfloat16)}, path)
    merged = run()
    assert merged.exit_code == 0
    assert "warning  w: the base holds weights there that are not finite" in merged.stderr
    assert "nan%" not in merged.stdout
    refused = run("--overwrite", "--min-retention", "0.9999")
    assert refused.exit_code == 7
    assert "less than 99.99% of the change, w the least" in refused.stderr


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--resume"], 3),
        (["--resume", "--no-sync"], 2),
        (["--workers", "0"], 2),
        (["--dtype", "q_proj=F32"], 2),
        (["--keep-undo", "undo", "--no-hash"], 2),
    ],
)
def test_options_that_cannot_be_are_refused(run: Run, tmp_path: Path, options: list[str], code: int) -> None:
    """With one line, and nothing is left."""
    before = sorted(path.name for path in tmp_path.iterdir())
    refused = run(*options)
    assert refused.exit_code == code
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_how_it_is_done_does_not_show(run: Run, tmp_path: Path) -> None:
    """Workers, digests and the disk change nothing in the weights."""
    assert run().exit_code == 0
    expected = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert run("--overwrite", "--workers", 3, "--no-hash", "--no-sync").exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == expected
    receipt = json.loads((tmp_path / "out" / "loreg-receipt.json").read_bytes())
    assert [record["digest"] for record in receipt["outputs"]] == [None]
