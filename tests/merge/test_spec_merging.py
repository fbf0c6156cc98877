"""The ids, policies and fields that spec/merging.md lists are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from lora_registry.merge.fitting.fit import Verdict
from lora_registry.merge.proof.judgement import Answer
from lora_registry.merge.receipt import Receipt
from lora_registry.merge.undo import block as undo_block
from lora_registry.merge.undo import header as undo_header
from lora_registry.ops.tied import TiedPolicy

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "spec/merging.md").read_text()


def table(id_: str) -> set[str]:
    return set(re.findall(rf"^\| ({id_}-\d{{3}}) \|", TEXT, re.MULTILINE))


def in_code(id_: str) -> set[str]:
    sources = (
        path.read_text() for folder in ("merge", "onnx") for path in (ROOT / "lora_registry" / folder).rglob("*.py")
    )
    return {found for source in sources for found in re.findall(rf'"({id_}-\d{{3}})"', source)}


def test_every_finding_of_the_fit_and_of_the_resolver_is_listed() -> None:
    """A finding that the text does not explain cannot be looked up."""
    assert table("M") == in_code("M")
    assert table("O") == in_code("O")


def test_verdicts_policies_and_receipt_fields_are_listed() -> None:
    """The tables and lists name what the code has, and nothing else."""
    section = {part.split("\n")[0]: part for part in TEXT.split("\n## ")}
    assert set(re.findall(r"^\| `([a-z-]+)` \|", section["1. The fit"], re.MULTILINE)) == set(Verdict)
    assert set(re.findall(r"^\| `([a-z]+)` \|", section["3. Tied tensors"], re.MULTILINE)) == set(get_args(TiedPolicy))
    receipt = section["4. The receipt"]
    listed = {
        name for line in re.findall(r"^- (.*)$", receipt, re.MULTILINE) for name in re.findall(r"\*\*`(\w+)`\*\*", line)
    }
    # Cautions stand among the warnings, which are made of them and of what the records say.
    assert listed - {"loreg_receipt", "tool", "warnings"} == set(Receipt.__dataclass_fields__) - {"cautions"}


def test_every_refusal_of_a_reverse_patch_is_listed() -> None:
    """The ids in the messages are those of the table, and their numbers those of the code."""
    sources = [path.read_text() for path in (ROOT / "lora_registry/merge/undo").glob("*.py")]
    assert table("U") == {found for source in sources for found in re.findall(r"\((U-\d{3})\)", source)}
    section = TEXT.split("\n## 6. ")[1].split("\n## 7. ")[0].replace(" ", "")
    for number in (undo_header.BLOCK, undo_header.HEADER, undo_block.SLACK):
        assert str(number) in section
    assert undo_header.MAGIC.decode() in section


def test_what_the_judge_knows_is_told() -> None:
    """The three answers stand in the text."""
    section = TEXT.split("\n## 8. ")[1]
    assert all(f"*{answer.value}*" in section for answer in Answer)
