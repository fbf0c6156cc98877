"""The four sets of rule ids agree: those of the text, of the code, of the errors that it raises, and of the vectors."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lora_registry.conformance.vectors import load
from lora_registry.errors import LoregError
from lora_registry.format.data_rules import check_data
from lora_registry.format.reader import read_adapter
from lora_registry.format.rules import RULES

SPEC = Path(__file__).parents[2] / "spec"


def defined() -> set[str]:
    """The R rules that the text defines."""
    text = (SPEC / "adapter-format.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\*\*(R-\d{3})\*\*", text, re.MULTILINE))


def listed() -> set[str]:
    """The R rules that vectors of the index are about."""
    index = json.loads((SPEC / "vectors" / "index.json").read_text(encoding="utf-8"))
    return {rule for entry in index["vectors"] for rule in entry["rules"] if rule.startswith("R")}


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The ids that errors and findings carry when the vectors are read through the package."""
    corpus, scratch = load(SPEC / "vectors"), tmp_path_factory.mktemp("built")
    ids = set()
    for vector in corpus.vectors:
        try:
            findings = check_data(read_adapter(corpus.adapter(vector, scratch)))
        except LoregError as error:
            findings = list(error.findings)
        ids |= {finding.rule for finding in findings}
    return ids


def test_rule_ids(raised: set[str]) -> None:
    """A rule that one of the four lacks would be an unkept promise, a secret or a dead letter."""
    assert defined() == set(RULES)
    assert defined() == listed()
    assert defined() == raised
