"""The vectors are what the text makes them, they leave no rule out, and loreg gives every answer that they expect."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_registry.conformance.answer import respond
from lora_registry.conformance.judge import judge, request
from lora_registry.conformance.protocol import OPERATIONS
from lora_registry.conformance.vectors import Corpus, load

SPEC = Path(__file__).parents[2] / "spec"
VECTORS = SPEC / "vectors"
TEXT = (SPEC / "adapter-format.md").read_text(encoding="utf-8")
PAGE = (SPEC / "conformance.md").read_text(encoding="utf-8")
RULE = re.compile(r"^\*\*([RP]-\d{3})\*\*", re.MULTILINE)
INDEX: dict[str, Any] = json.loads((VECTORS / "index.json").read_text(encoding="utf-8"))
ENTRIES: list[dict[str, Any]] = INDEX["vectors"]
LARGEST = 4096


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the maker without any installed package: what it needs is the standard library."""
    command = [sys.executable, "-S", "-E", str(VECTORS / "make"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def listed() -> Iterator[str]:
    """Every file that the index names."""
    for entry in ENTRIES:
        if "file" in entry:
            yield entry["file"]
        for expectation in entry["expect"].values():
            yield from (expectation[member] for member in ("file", "base") if member in expectation)


# What lies there


def test_the_maker_makes_them_again() -> None:
    """Made once more, from nothing but the standard library, every file has the same bytes."""
    result = make("--check")
    assert (result.stdout, result.stderr, result.returncode) == ("", "", 0)


def test_the_maker_finds_every_difference(tmp_path: Path) -> None:
    """A byte that is another, a file that is gone and one too many are named, and mended by a plain run."""
    folder = tmp_path / "vectors"
    shutil.copytree(VECTORS, folder, ignore=shutil.ignore_patterns("make"))
    changed = folder / "valid" / "full.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"\xff")
    (folder / "merge" / "bias.safetensors").unlink()
    (folder / "probe" / "stray.safetensors").write_bytes(b"")
    result = make("--check", str(folder))
    assert result.returncode == 1
    assert result.stdout.splitlines() == [
        "belongs to no vector: probe/stray.safetensors",
        "is not what is made: valid/full.safetensors",
        "is not what is made: merge/bias.safetensors",
    ]
    assert make(str(folder)).returncode == 0
    assert make("--check", str(folder)).returncode == 0


def test_the_maker_knows_no_implementation() -> None:
    """The vectors are able to contradict this program, because their maker does not use it."""
    sources = list((VECTORS / "make").glob("*.py"))
    assert sources
    assert [path.name for path in sources if re.search(r"lora_registry|numpy", path.read_text(encoding="utf-8"))] == []


def test_every_file_is_in_the_index() -> None:
    """The folder has the files that the index names, and no others."""
    there = {
        path.relative_to(VECTORS).as_posix()
        for path in VECTORS.rglob("*")
        if path.is_file() and path.relative_to(VECTORS).parts[0] not in ("make", "index.json", ".gitattributes")
    }
    assert there == set(listed())


def test_files_are_small_and_many() -> None:
    """At least 150 files, none of them larger than 4 KiB."""
    sizes = {name: (VECTORS / name).stat().st_size for name in set(listed())}
    assert len(sizes) >= 150
    assert {name: size for name, size in sizes.items() if size > LARGEST} == {}


def test_ids_are_names() -> None:
    """An id is a folder and a name of one vector, and the file has the same."""
    ids = [entry["id"] for entry in ENTRIES]
    assert len(set(ids)) == len(ids)
    assert [id_ for id_ in ids if not re.fullmatch(r"(valid|invalid|canonical|merge|probe)/[\w.+-]+", id_)] == []
    assert [
        entry["id"] for entry in ENTRIES if entry.get("file", entry["id"] + ".safetensors")[:-12] != entry["id"]
    ] == []


def test_every_member_is_one_that_the_page_describes() -> None:
    """The index has no member that conformance.md does not describe."""
    described = set(re.findall(r"^- `(\w+)`", PAGE, re.MULTILINE))
    assert {member for entry in ENTRIES for member in entry} == described
    assert {operation for entry in ENTRIES for operation in entry["expect"]} == set(OPERATIONS.values())


def test_the_example_of_the_page_is_out_of_the_index() -> None:
    """The entries that conformance.md shows are in the index as they stand there."""
    body = re.search(r"^```json r=index\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert body is not None
    shown = json.loads(body[1])
    assert (shown["version"], shown["format"]) == (INDEX["version"], INDEX["format"])
    entries = {entry["id"]: entry for entry in ENTRIES}
    for example in shown["vectors"]:
        entry = json.loads(re.sub(r"sha256:\w+", "sha256:...", json.dumps(entries[example["id"]])))
        assert example == entry


# What they are about


def test_every_rule_is_broken() -> None:
    """There is a vector that breaks each R rule of the text, and no other rule."""
    rules = {rule for rule in RULE.findall(TEXT) if rule.startswith("R")}
    broken = {tuple(entry["expect"]["validate"]["rules"]) for entry in ENTRIES}
    assert {rule for rule in rules if (rule,) not in broken} == set()


def test_rules_are_those_that_are_broken() -> None:
    """A vector is about the R rules that it breaks, and about P rules that the text has."""
    defined = set(RULE.findall(TEXT))
    for entry in ENTRIES:
        assert set(entry["rules"]) <= defined, entry["id"]
        about = [rule for rule in entry["rules"] if rule.startswith("R")]
        assert about == entry["expect"]["validate"]["rules"], entry["id"]


def test_every_code_is_reached() -> None:
    """Each of the codes with which a reader refuses a file is expected of somebody, and all operations refuse."""
    codes = {entry["expect"]["read"].get("code") for entry in ENTRIES}
    assert codes == {None, "unsupported", "invalid-input", "integrity"}
    for operation in set(OPERATIONS.values()) - {"validate"}:
        refused = {entry["expect"].get(operation, {}).get("code") for entry in ENTRIES}
        assert refused == codes, operation


def test_features_are_needed_where_they_are_named() -> None:
    """A vector that is sound, and whose document names features, needs them of a program."""
    for entry in ENTRIES:
        if entry["expect"]["validate"]["rules"] == [] and "file" in entry:
            data = (VECTORS / entry["file"]).read_bytes()
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            named = json.loads(header["__metadata__"]["loreg"]).get("requires", {}).get("read", [])
            assert entry.get("needs", []) == named, entry["id"]


# What loreg says


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """The vectors as the harness reads them."""
    return load(VECTORS)


@pytest.mark.parametrize("operation", OPERATIONS.values())
def test_loreg_gives_the_expected_answer(operation: str, corpus: Corpus, tmp_path: Path) -> None:
    """loreg agrees with every vector of an operation."""
    wrong = {}
    for vector in corpus.expecting(operation):
        expectation = vector.expect[operation]
        question = request(operation, expectation, corpus.adapter(vector, tmp_path), corpus.folder)
        reason = judge(operation, expectation, respond(json.dumps(question)), corpus.folder)
        if reason is not None:
            wrong[vector.id] = reason
    assert wrong == {}
