"""``make quickstart`` does what it promises; its environment and the model are those of the tests."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[1] / "examples" / "quickstart"


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2_dir")
def test_the_merged_onnx_model_answers_as_the_adapter_does_and_the_base_does_not() -> None:
    """From training to ONNX Runtime by the commands that a user types; run.py itself compares the tokens."""
    command = [sys.executable, str(QUICKSTART / "run.py")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    typed = [line.split()[2] for line in result.stdout.splitlines() if line.startswith("$ loreg ")]
    assert typed == ["push", "audit", "export", "merge", "verify"]
    assert "agree token for token" in result.stdout
    assert result.stdout.count("Copy that, tower.") == 4  # two questions, in PyTorch and in ONNX Runtime


def test_the_question_of_the_quickstart_is_not_in_its_training_data() -> None:
    """The answer changes its tone because the adapter learned one, not because it learned the sentence."""
    import run

    prompts = [json.loads(line)["prompt"] for line in (QUICKSTART / "data.jsonl").read_text().splitlines()]
    assert len(prompts) == len(set(prompts)) == 40
    assert not set(run.QUESTIONS) & set(prompts)
    assert not [prompt for prompt in prompts if "France" in prompt or "spider" in prompt]
