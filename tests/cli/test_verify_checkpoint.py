"""loreg verify on checkpoints, loreg unmerge, and loreg merge --replay and --keep-undo, as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from peft import LoraConfig
from peft_adapters import make_peft_adapter
from tiny_models import MODELS

from lora_registry.cli import main


def loreg(*words: object, exit_code: int = 0) -> Result:
    """What the command prints, once its exit code is the one that is expected."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture
def case(tiny_dir: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base, a PEFT adapter, and their merge with a reverse patch beside it."""
    make_peft_adapter(MODELS["llama-untied"](), LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    base, merged = tiny_dir("llama-untied"), tmp_path / "merged"
    loreg("merge", tmp_path / "adapter", "--base", base, "-o", merged, "--keep-undo", tmp_path / "m.undo")
    return base, tmp_path / "adapter", merged


def test_verify_says_what_holds(case: tuple[Path, Path, Path]) -> None:
    """A line for the changed tensors, one for the others, and the answer; exit 0."""
    base, adapter, merged = case
    lines = loreg("verify", merged, "--base", base, "--adapter", adapter).stdout.splitlines()
    assert lines[0] == "holds: 2 tensors (model.layers.0.self_attn.q_proj.weight and 1 more): rounded once"
    assert lines[1] == "holds: 19 other tensors: byte-equal to the base"
    assert lines[-1].startswith("holds: at most ")
    assert "--all" in lines[-1]
    every = loreg("verify", merged, "--base", base, "--adapter", adapter, "--all", "--one-rounding")
    assert "every row and byte" in every.stdout


def test_verify_fails_with_the_reason(case: tuple[Path, Path, Path]) -> None:
    """Exit 7 for what does not hold, and JSON with a judgement for each tensor."""
    base, adapter, merged = case
    result = loreg("verify", base, "--base", base, "--adapter", adapter, exit_code=7)
    assert "it is the base: the adapter was not applied" in result.stdout
    assert result.stderr.startswith("error: ")
    assert "is not the base with this adapter" in result.stderr
    told = json.loads(loreg("verify", merged, "--base", base, "--json", exit_code=7).stdout)
    assert told["answer"] == "does not"
    assert not told["holds"]
    assert len(told["untouched"]) == 21
    assert loreg("verify", base, "--base", base).stdout.splitlines()[-1].startswith("holds: nothing is to be changed")


def test_verify_does_not_guess(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Exit 9 where the sampled rows are the same with and without the adapter."""
    base, _, _ = case
    config = LoraConfig(r=4, lora_alpha=1e-9, target_modules=["q_proj"])
    make_peft_adapter(MODELS["llama-untied"](), config, tmp_path / "small")
    result = loreg("verify", base, "--base", base, "--adapter", tmp_path / "small", "--rows", 2, exit_code=9)
    assert "cannot be decided" in result.stdout
    assert "nothing tells whether" in result.stderr


def test_options_of_the_other_kind_are_refused(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """What means nothing for a checkpoint, or for an ONNX file, is no option there."""
    base, _, merged = case
    for words in (["--provider", "cpu"], ["--samples", "3"], ["--tolerance", "1"], ["--all", "--rows", "3"]):
        loreg("verify", merged, "--base", base, *words, exit_code=2)
    for words in (["--all"], ["--rows", "3"], ["--one-rounding"]):
        loreg("verify", tmp_path / "x.onnx", "--base", base, *words, exit_code=2)


def test_unmerge_gives_the_base_back(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """From the patch of the merge, from one that is made afterwards, and from the base."""
    base, _, merged = case
    out = tmp_path / "out"
    told = loreg("unmerge", merged, "--undo", tmp_path / "m.undo", "-o", out).stdout
    assert "each with the digest that the base had" in told
    assert (out / "model.safetensors").read_bytes() == (base / "model.safetensors").read_bytes()
    saved = json.loads(loreg("unmerge", merged, "--base", base, "--save-undo", tmp_path / "n.undo", "--json").stdout)
    assert saved["size"] == (tmp_path / "n.undo").stat().st_size
    assert (tmp_path / "n.undo").read_bytes() == (tmp_path / "m.undo").read_bytes()
    copied = json.loads(loreg("unmerge", merged, "--base", base, "-o", tmp_path / "copy", "--json").stdout)
    assert {record["name"] for record in copied["files"]} == {path.name for path in base.iterdir()}
    loreg("unmerge", base, "--undo", tmp_path / "m.undo", "-o", tmp_path / "wrong", exit_code=7)
    assert not (tmp_path / "wrong").exists()


def test_unmerge_says_what_it_needs(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Exactly one source, and an output; or a patch to save."""
    base, _, merged = case
    for words in (
        [],
        ["-o", tmp_path / "out"],
        ["-o", tmp_path / "out", "--undo", tmp_path / "m.undo", "--base", base],
        ["--save-undo", tmp_path / "n.undo"],
        ["--save-undo", tmp_path / "n.undo", "--base", base, "-o", tmp_path / "out"],
    ):
        loreg("unmerge", merged, *words, exit_code=2)
    loreg("unmerge", merged, "--base", base, "--save-undo", tmp_path / "m.undo", exit_code=4)


def test_a_merge_is_replayed(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """The receipt has the options; those that are typed beside it are refused."""
    base, adapter, merged = case
    words = ["merge", adapter, "--base", base, "-o", tmp_path / "again", "--replay", merged / "loreg-receipt.json"]
    for more in (["--tied", "untie"], ["--dtype", "F32"], ["--overwrite"], ["--dry-run"]):
        assert "--replay" in loreg(*words, *more, exit_code=2).stderr
    loreg(*words, "--workers", "2", "--keep-undo", tmp_path / "again.undo")
    for path in merged.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()
    assert (tmp_path / "again.undo").read_bytes() == (tmp_path / "m.undo").read_bytes()


def test_a_patch_that_cannot_be_kept_stops_the_merge(case: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Before anything is written."""
    base, adapter, _ = case
    words = ["merge", adapter, "--base", base, "-o", tmp_path / "more", "--keep-undo"]
    loreg(*words, tmp_path / "m.undo", exit_code=4)
    loreg(*words, tmp_path / "none" / "m.undo", exit_code=3)
    loreg(*words, base / "m.undo", exit_code=5)
    loreg(*words, tmp_path / "n.undo", "--dry-run", exit_code=2)
    assert not (tmp_path / "more").exists()
