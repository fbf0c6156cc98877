"""Inputs that fuzzing found worth keeping: each still comes out as its name says, with every property of a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from file_properties import examine

from lora_registry.format.rules import RULES

CORPUS = sorted(Path(__file__).with_name("corpus").glob("*.safetensors"))
RULE = re.compile(r"R-\d{3}")


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_an_input_comes_out_as_its_name_says(path: Path, tmp_path: Path) -> None:
    """It breaks the rules that its name begins with, or none."""
    rules = set(RULE.findall(path.name))
    assert rules or path.name.startswith("accepted-")
    assert {finding.rule for finding in examine(path.read_bytes(), tmp_path)} == rules


def test_the_corpus_is_small_and_has_every_rule() -> None:
    """Every rule is broken by one of them, except R-010, which takes 65 536 tensors."""
    assert 0 < len(CORPUS) <= 40
    assert all(path.stat().st_size <= 4096 for path in CORPUS)
    assert {rule for path in CORPUS for rule in RULE.findall(path.name)} == set(RULES) - {"R-010"}
