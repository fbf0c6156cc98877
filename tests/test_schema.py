"""The JSON Schema is derived, refuses nothing sound, and misses nothing but what its page lists."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lora_registry.conformance.vectors import Vector, built, load
from lora_registry.format.rules import RULES

SPEC = Path(__file__).parent.parent / "spec"
SCHEMA = SPEC / "schema"
VALIDATOR = Draft202012Validator(json.loads((SCHEMA / "document.schema.json").read_text(encoding="utf-8")))
GAPS = set(re.findall(r"^\| (R-\d{3}) \|", (SCHEMA / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
CORPUS = load(SPEC / "vectors")
JUDGED = CORPUS.expecting("validate")
SOUND = [vector for vector in JUDGED if not vector.expect["validate"]["rules"]]
BROKEN = [vector for vector in JUDGED if vector.expect["validate"]["rules"]]


def document(vector: Vector) -> Any:
    """The document of a vector, or None where there is none that can be read."""
    data = b"".join(built(vector.pieces)) if vector.file is None else (CORPUS.folder / vector.file).read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header["__metadata__"]["loreg"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def rules(vector: Vector) -> set[str]:
    """The rules that a vector breaks."""
    stated = vector.expect["validate"]["rules"]
    assert isinstance(stated, list)
    return set(map(str, stated))


def test_the_schema_is_derived() -> None:
    """What is committed is what the tables give."""
    made = runpy.run_path(str(SCHEMA / "make.py"))
    assert made["main"](["--check"]) == 0


def test_the_schema_is_a_schema() -> None:
    """The schema follows the draft that it names."""
    Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("vector", SOUND, ids=lambda vector: vector.id)
def test_sound_documents_pass(vector: Vector) -> None:
    """A document that breaks no rule is not refused."""
    assert not list(VALIDATOR.iter_errors(document(vector)))


@pytest.mark.parametrize("vector", BROKEN, ids=lambda vector: vector.id)
def test_broken_documents_are_refused(vector: Vector) -> None:
    """A document that breaks a rule is refused, unless each rule is one that the page lists."""
    found = document(vector)
    assert rules(vector) <= GAPS or (found is not None and not VALIDATOR.is_valid(found))


def test_gaps_are_gaps() -> None:
    """Each rule on the page is broken by a document that the schema accepts, or that it never sees."""
    missed = set()
    for vector in BROKEN:
        found = document(vector)
        if found is None or VALIDATOR.is_valid(found):
            missed |= rules(vector)
    assert missed == GAPS
    assert set(RULES) >= GAPS
