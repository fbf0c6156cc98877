"""Signals: whoever stops loreg finds nothing half made."""

from __future__ import annotations

import os
import signal
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
