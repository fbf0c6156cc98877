"""Signals: whoever stops loreg finds nothing half made."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from lora_registry.cli._command import command
from lora_registry.format.files import staging_folder


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_leaves_nothing_behind(number: signal.Signals, status: int, word: str, tmp_path: Path) -> None:
    """Ctrl-C and SIGTERM both end the command with the status that shells expect and remove what it was making."""
    made: list[Path] = []

    @command("work", examples="")
    def work() -> None:
        with staging_folder(tmp_path / "out") as folder:
            made.append(folder)
            (folder / "half").write_bytes(b"half")
            os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(work)
    assert (result.exit_code, result.stderr) == (status, f"{word}\n")
    assert made
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_pipe_is_no_success() -> None:
    """A reader that goes away ends the command in silence and with the status of SIGPIPE, never as if all were well."""
    closed, pipe = os.pipe()
    os.close(closed)
    with os.fdopen(pipe, "wb") as stdout:
        words = [sys.executable, "-m", "lora_registry", "audit", "--rules"]
        ended = subprocess.run(words, stdout=stdout, stderr=subprocess.PIPE, check=False)
    assert (ended.returncode, ended.stderr) == (141, b"")
