"""``loreg validate``: a verdict for each file, and the exit code of a reader's refusal (P-034)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lora_registry.cli import main
from lora_registry.conformance.vectors import find, load

CORPUS = load(find())
EXIT = {"invalid-input": 8, "unsupported": 8, "integrity": 7}
JUDGED = [vector for vector in CORPUS.expecting("read") if vector.file is not None and not vector.needs]


@pytest.mark.parametrize("vector", JUDGED[::7], ids=lambda vector: vector.id)
def test_the_exit_code_is_that_of_the_refusal(vector: object, tmp_path: Path) -> None:
    """P-034: a command that does nothing but validate exits as a reader refuses, and with 0 for a sound file."""
    chosen = next(each for each in JUDGED if each is vector)
    result = CliRunner().invoke(main, ["validate", str(CORPUS.adapter(chosen, tmp_path)), "--json"])
    assert result.exit_code == EXIT.get(str(chosen.expect["read"].get("code")), 0)
    [answer] = json.loads(result.stdout)
    assert answer["sound"] is (result.exit_code == 0)
    assert bool(answer["findings"]) is not answer["sound"]


def test_every_file_is_judged(tmp_path: Path) -> None:
    """One broken file does not hide the others, and a file that is not there is an error of its own."""
    by_id = {vector.id: str(CORPUS.adapter(vector, tmp_path)) for vector in JUDGED}
    sound = next(path for name, path in by_id.items() if name.startswith("valid/"))
    broken = next(path for name, path in by_id.items() if name.startswith("invalid/R-029"))
    result = CliRunner().invoke(main, ["validate", sound, broken])
    assert result.exit_code == 8
    assert "sound" in result.output
    assert "R-029" in result.output
    assert CliRunner().invoke(main, ["validate", sound, str(tmp_path / "none")]).exit_code == 3
