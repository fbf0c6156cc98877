"""The benchmark of the GPU runs everywhere: small on torch's CPU, and not at all, with the reason, without a GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cuda.py"


def run(*arguments: str) -> str:
    """What it prints."""
    done = subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_small(tmp_path: Path) -> None:
    """Every part runs, CPU and device agree, and no result is kept."""
    kept = SCRIPT.parent / "results" / "cuda.json"
    before = kept.read_bytes() if kept.exists() else None
    said = run("--small", "--scratch", str(tmp_path))
    for what in (
        "copy, both, each direction",
        "merge, blocks, in pinned memory",
        "merge, files, cuda, no hash",
        "merge, resident, in place",
        "bar 0.8:",
    ):
        assert what in said
    assert "'ulps': 0" in said or "'ulps': 1" in said
    assert "TIES of three" in said
    assert (kept.read_bytes() if kept.exists() else None) == before
    assert list(tmp_path.iterdir()) == []


def test_one_part(tmp_path: Path) -> None:
    """The others are left out, so that a machine that is lent for minutes measures what it has time for."""
    said = run("--small", "--scratch", str(tmp_path), "--part", "copies")
    assert "copy, both, each direction" in said
    assert "merge" not in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    """One line says why."""
    assert run().startswith("skipped: ")
