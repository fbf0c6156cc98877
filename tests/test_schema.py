"""The JSON Schema is derived, refuses nothing sound, and misses nothing but what its page lists."""

from __future__ import annotations

import gzip
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lora_registry.format.rules import RULES

SPEC = Path(__file__).parent.parent / "spec"
SCHEMA = SPEC / "schema"
VECTORS = SPEC / "vectors"
VALIDATOR = Draft202012Validator(json.loads((SCHEMA / "document.schema.json").read_text(encoding="utf-8")))
GAPS = set(re.findall(r"^\| (R-\d{3}) \|", (SCHEMA / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
INDEX = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))["vectors"]
SOUND = [vector for vector in INDEX if vector["expect"].get("validate") == {"rules": []}]
BROKEN = [vector for vector in INDEX if vector["expect"].get("validate", {}).get("rules")]


def document(vector: dict[str, Any]) -> Any:
    """The document of a vector, or None where there is none that can be read."""
    path = VECTORS / vector["file"]
    data = gzip.decompress(path.read_bytes()) if vector.get("gunzip") else path.read_bytes()
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return json.loads(header["__metadata__"]["loreg"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def test_the_schema_is_derived() -> None:
    """What is committed is what the tables give."""
    made = runpy.run_path(str(SCHEMA / "make.py"))
    assert made["main"](["--check"]) == 0


def test_the_schema_is_a_schema() -> None:
    """The schema follows the draft that it names."""
    Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("vector", SOUND, ids=lambda vector: vector["id"])
def test_sound_documents_pass(vector: dict[str, Any]) -> None:
    """A document that breaks no rule is not refused."""
    assert not list(VALIDATOR.iter_errors(document(vector)))


@pytest.mark.parametrize("vector", BROKEN, ids=lambda vector: vector["id"])
def test_broken_documents_are_refused(vector: dict[str, Any]) -> None:
    """A document that breaks a rule is refused, unless each rule is one that the page lists."""
    rules = set(vector["expect"]["validate"]["rules"])
    found = document(vector)
    assert rules <= GAPS or (found is not None and not VALIDATOR.is_valid(found))


def test_gaps_are_gaps() -> None:
    """Each rule on the page is broken by a document that the schema accepts, or that it never sees."""
    missed = set()
    for vector in BROKEN:
        found = document(vector)
        if found is None or VALIDATOR.is_valid(found):
            missed |= set(vector["expect"]["validate"]["rules"])
    assert missed == GAPS
    assert set(RULES) >= GAPS
