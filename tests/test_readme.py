"""The session in the README runs as it stands, on the real model, and prints what the README shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[1]


def session() -> list[tuple[str, list[str]]]:
    """The commands of the README's console block, each with the lines it is shown to print."""
    block = re.search(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    steps: list[tuple[str, list[str]]] = []
    for line in block[1].splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        elif line.strip():
            steps[-1][1].append(line)
    return steps


def matches(shown: str, printed: str) -> bool:
    """Whether a line of the README, with … for what differs between machines, is a line that was printed."""
    pattern = r"\s+".join(
        ".*".join(re.escape(piece) for piece in word.split("…")) if "…" in word else re.escape(word)
        for word in shown.split()
    )
    return re.fullmatch(pattern, printed.strip()) is not None


@pytest.mark.slow
def test_the_session_in_the_readme_runs_and_prints_what_it_shows(tmp_path: Path, smollm2_dir: Path) -> None:
    """Push, audit, export, merge and verify, on SmolLM2 and an adapter that PEFT wrote."""
    (tmp_path / "base").symlink_to(smollm2_dir)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.peft_config["default"].base_model_name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
    adapted.save_pretrained(tmp_path / "my-peft-adapter")

    environment = {**os.environ, "LOREG_HOME": str(tmp_path / "home"), "COLUMNS": "200"}
    steps = session()
    assert len(steps) >= 5
    for line, shown in steps:
        arguments = shlex.split(line)
        assert arguments[0] == "loreg"
        done = subprocess.run(
            [sys.executable, "-m", "lora_registry", *arguments[1:]],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
        printed = (done.stdout + done.stderr).splitlines()
        for expected in shown:
            if expected.strip() == "…":
                continue
            assert any(matches(expected, actual) for actual in printed), f"{line}\n{expected}\n{done.stdout}"
