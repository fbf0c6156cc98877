"""``loreg merge`` and ``loreg verify`` with quantized bases: what stands on the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from golden_vectors import write_checkpoint
from quantized_merges import lora

from lora_registry.adapter import Base
from lora_registry.cli import main
from lora_registry.errors import IntegrityError
from lora_registry.format.writer import write_adapter

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run loreg in a folder with a base in nf4 and two adapters, one of which says that it was trained on that."""
    monkeypatch.setenv("LOREG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.chdir(tmp_path)
    adapter = lora("m.weight", write_checkpoint(tmp_path / "base", "nf4-double").shape)
    write_adapter(adapter, tmp_path / "plain.loreg.safetensors")
    trained = replace(adapter, base=Base(view={"scheme": "nf4", "block": 64}))
    write_adapter(trained, tmp_path / "trained.loreg.safetensors")
    return lambda *arguments: CliRunner().invoke(main, [*map(str, arguments)])


def test_a_dry_run_says_the_view_and_what_speaks_against_it(run: Run, tmp_path: Path) -> None:
    """P-049, before anything is written: the same warning as the merge itself gives."""
    into = ("--base", "base", "-o", "out")
    shown = run("merge", "plain.loreg.safetensors", *into, "--dry-run")
    assert shown.exit_code == 0, shown.output
    assert "nf4, block 64, double True" in shown.stdout
    warning = "the base is quantized, nf4 (block 64, double True), and nothing says that the adapter was trained on it"
    assert f"warning  {warning}" in shown.stderr
    told = json.loads(run("merge", "plain.loreg.safetensors", *into, "--dry-run", "--json").stdout)
    assert told["view"] == {"scheme": "nf4", "block": 64, "double": True}
    assert told["warnings"][0].startswith(warning)
    assert not (tmp_path / "out").exists()
    assert f"warning  {warning}" in run("merge", "plain.loreg.safetensors", *into).stderr


def test_an_adapter_that_was_trained_on_the_view_is_noted_and_not_warned_of(run: Run) -> None:
    """Members that only one of the two has are no matter."""
    shown = run("merge", "trained.loreg.safetensors", "--base", "base", "-o", "out", "--dry-run")
    assert "note     base/view: the adapter was trained on a base in nf4" in shown.stderr
    assert "warning" not in shown.stderr
    assert (
        json.loads(
            run("merge", "trained.loreg.safetensors", "--base", "base", "-o", "out", "--dry-run", "--json").stdout
        )["warnings"]
        == []
    )


def test_what_was_merged_out_of_a_quantization_is_verified(run: Run) -> None:
    """It holds, with the view said; and another adapter does not, by the exit code too."""
    assert run("merge", "plain.loreg.safetensors", "--base", "base", "-o", "out").exit_code == 0
    found = run("verify", "out", "--base", "base", "--adapter", "plain.loreg.safetensors", "--all")
    assert found.exit_code == 0, found.output
    assert "note: the base is quantized (nf4 (block 64, double True)); its dequantized values count" in found.stdout
    assert "holds: at most" in found.stdout
    refused = run("verify", "out", "--base", "base")
    assert refused.exit_code == IntegrityError.exit_code
    assert "% off what the base stands for" in refused.stdout
