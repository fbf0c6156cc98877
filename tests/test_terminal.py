"""What shows only on a terminal: bars and spinners run with the very callbacks that the engine calls."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_models
from peft_adapters import make_peft_adapter
from peft_jobs import JOBS

from lora_registry.cli._progress import progress, status


def on_a_terminal(*arguments: str | Path) -> str:
    """Run ``loreg`` with a pseudo-terminal as stderr; returns what appeared on it."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lora_registry", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # Linux reports the other end's hanging up as EIO
        pass
    os.close(ours)
    text = shown.decode()
    assert process.wait() in (0, 1), text  # 1: the audit has findings
    assert "Traceback" not in text
    return text


def test_names_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder may be called what rich takes for a style; its name is shown, and stops nothing."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("merging into a[/b]") as advance, status("exporting a[/b]") as say:
        assert advance is not None
        assert say is not None
        advance(1, 2)
        say("weights")


def test_long_work_shows_its_progress_on_a_terminal(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Merge, audit and export each draw something, and none stumbles over its own progress."""
    base = tiny_dir("llama-tied")
    make_peft_adapter(tiny_models.llama(), JOBS["llama-lora"].config(), tmp_path / "peft")
    assert "merging into merged" in on_a_terminal("merge", tmp_path / "peft", "--base", base, "-o", tmp_path / "merged")
    assert "auditing" in on_a_terminal("audit", tmp_path / "peft", "--base", base)
    assert "exporting" in on_a_terminal("export", base, "-o", tmp_path / "base.onnx")
    merge_onnx = ["merge", tmp_path / "peft", "--base", tmp_path / "base.onnx", "-o", tmp_path / "merged.onnx"]
    assert "merging into merged.onnx" in on_a_terminal(*merge_onnx)
    assert (tmp_path / "merged.onnx").exists()
