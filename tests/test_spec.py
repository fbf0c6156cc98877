"""The specification says what the code does: ids, tables, limits, examples, links, and its own style."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spec_pages import code, rows_of

from lora_registry import errors
from lora_registry.adapter import LAYOUTS, Adapter, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import LoregError
from lora_registry.format import features, limits, rules, target_rules
from lora_registry.format.container import encode_tensors
from lora_registry.format.identity import content_digest, root_digest
from lora_registry.format.reader import SUFFIX, check_file, read_adapter
from lora_registry.format.segment_record import from_record
from lora_registry.ops.arrays import from_array
from lora_registry.ops.change import merged
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.ops.probe import certify

SPEC = Path(__file__).parent.parent / "spec"
FORMAT = SPEC / "adapter-format.md"
TEXT = FORMAT.read_text(encoding="utf-8")
EXTENSIONS = (SPEC / "extensions.md").read_text(encoding="utf-8")
CONFORMANCE = (SPEC / "conformance.md").read_text(encoding="utf-8")
NOTHING: frozenset[str] = frozenset()
RULE = re.compile(r"^\*\*([RP]-\d{3})\*\* (.*)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEYWORD = re.compile(r"\b(MUST|SHOULD|MAY|REQUIRED|OPTIONAL)\b")


def fences(tag: str, text: str = TEXT) -> list[tuple[str, Any]]:
    """The examples whose tag begins with ``tag``: what follows a colon in the tag, and the JSON."""
    found = [match for match in FENCE.findall(text) if match[1].partition(":")[0] == tag]
    return [(label.partition(":")[2], json.loads(body)) for _, label, body in found]


def prose(text: str = TEXT) -> Iterator[str]:
    """The lines of the text outside of fences, tables and headings, without the numbers of lists."""
    for line in FENCE.sub("", text).splitlines():
        if line and not line.startswith(("|", "#")):
            yield re.sub(r"^\d+\. ", "", line)


def table(*header: str, text: str = TEXT) -> list[list[str]]:
    """The rows of the table with this header, as cells."""
    return rows_of(text, *header)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes out of the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# Rules


def test_rules_are_those_of_the_code() -> None:
    """Each rule that the code checks is defined once in the text, and no other R rule is.

    tests/conformance/test_rule_ids.py holds the errors and the vectors against both, which closes the ring.
    """
    defined = Counter(rule for rule, _ in RULE.findall(TEXT) if rule.startswith("R"))
    assert defined == Counter(rules.RULES.keys())


def test_processing_rules_are_numbered() -> None:
    """P rules are defined once each, and no number is left out."""
    defined = sorted(rule for rule, _ in RULE.findall(TEXT) if rule.startswith("P"))
    assert defined == [f"P-{number:03}" for number in range(1, len(defined) + 1)]


def test_rules_that_are_cited_exist() -> None:
    """No page of the specification cites a rule that is not defined."""
    defined = {rule for rule, _ in RULE.findall(TEXT)}
    cited = {
        (page.name, rule)
        for page in SPEC.rglob("*.md")
        for rule in re.findall(r"\b[RP]-\d{3}\b", page.read_text(encoding="utf-8"))
    }
    assert {(page, rule) for page, rule in cited if rule not in defined} == set()


@pytest.mark.parametrize(("rule", "sentence"), RULE.findall(TEXT), ids=[rule for rule, _ in RULE.findall(TEXT)])
def test_a_rule_is_one_normative_sentence(rule: str, sentence: str) -> None:
    """A rule is one sentence with a key word, so that it can be cited and broken by itself."""
    assert KEYWORD.search(sentence)
    assert sentence.endswith(".")
    assert not re.search(r"[.;] ", sentence)


# Style


@pytest.mark.parametrize("word", ["must", "should", "may", "shall"])
def test_key_words_are_in_capitals(word: str) -> None:
    """The key words of BCP 14 do not occur in lower case, where nobody knows whether they bind."""
    assert re.findall(rf".*\b{word}\b.*", FENCE.sub("", TEXT + EXTENSIONS + CONFORMANCE)) == []


def test_one_sentence_a_line() -> None:
    """A line holds one sentence, so that changes of the text can be read."""
    assert [line for line in prose(TEXT + EXTENSIONS + CONFORMANCE) if re.search(r"[.?!] [A-Z]", line)] == []


def test_key_words_outside_of_rules() -> None:
    """What binds is a rule: outside of rules the key words occur only where they are declared or mark a field."""
    outside = [line for line in prose() if KEYWORD.search(line) and not RULE.match(line)]
    assert all(line.startswith(("The key words", "- **`")) for line in outside), outside


def test_the_screen_is_a_screen() -> None:
    """The format on one screen has at most twenty lines of at most a hundred characters."""
    body = FENCE.search(TEXT)
    assert body is not None
    lines = body[3].splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("page", sorted(SPEC.rglob("*.md")), ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Every link to a page or a heading of this project finds it."""
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = (page.parent / name).resolve() if name else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_every_page_is_in_the_index() -> None:
    """The index names each page and each decision."""
    index = (SPEC / "README.md").read_text(encoding="utf-8")
    pages = {page.relative_to(SPEC).as_posix() for page in SPEC.rglob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page})" not in index} == set()


# Tables


def test_table_of_kinds() -> None:
    """Kinds, layouts and roles in the text are those of the code."""
    stated = {
        Kind(code(kind)[0]): (
            frozenset(tuple(layout.split()) for layout in code(layouts)) or frozenset({()}),
            frozenset(code(required)),
            frozenset(code(optional)),
        )
        for text in (TEXT, EXTENSIONS)
        for kind, layouts, required, optional in table("kind", "layouts", "required roles", "optional roles", text=text)
    }
    assert stated == {
        kind: (LAYOUTS[kind], frozenset.union(*target_rules.REQUIRED[kind]), target_rules.OPTIONAL.get(kind, NOTHING))
        for kind in Kind
    }


def test_table_of_meanings() -> None:
    """Every kind has a line that says what it means."""
    core = table("kind", "result", "factors and other tensors")
    registered = table("kind", "result", "tensors", text=EXTENSIONS)
    assert [code(row[0])[0] for row in (*core, *registered)] == list(Kind)


def test_table_of_features() -> None:
    """The features of the register are those of the code."""
    stated = table("name", "what it is", "in `requires.read`", "since", text=EXTENSIONS)
    assert {code(row[0])[0] for row in stated if row[2] == "yes"} == features.FEATURES


def test_table_of_element_types() -> None:
    """The element types of the text are those of the code."""
    stated = {
        code(name)[0]: (int(size), flag == "yes") for name, size, flag in table("name", "bytes", "floating point")
    }
    assert stated == {dtype.name: (dtype.size, dtype.floating) for dtype in DTYPES.values()}


def test_table_of_exit_codes() -> None:
    """Exit codes and names of errors in the text are those of the code."""
    stated = {(int(number), code(name)[0]) for number, name, _ in table("exit", "error", "when") if code(name)}
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LoregError)]
    assert stated == {(kind.exit_code, kind.code) for kind in tree if kind is not LoregError}
    assert [row[0] for row in table("exit", "error", "when") if not row[1]] == ["0", str(errors.EXIT_FINDINGS)]


def test_limits() -> None:
    """The numbers in the rules are those of the code."""
    text = {rule: sentence.replace(" ", "") for rule, sentence in RULE.findall(TEXT)}
    for rule, number in (
        ("R-001", limits.HEADER_BYTES),
        ("R-006", limits.AXIS_LENGTH),
        ("R-006", limits.AXES),
        ("R-009", limits.NAME_BYTES),
        ("R-010", limits.TENSORS),
        ("R-021", limits.NAME_BYTES),
        ("R-024", limits.AXIS_LENGTH),
        ("R-024", limits.AXES),
    ):
        assert str(number) in text[rule], rule
    assert f"deeper than {limits.JSON_DEPTH} levels" in TEXT
    assert limits.SAFE_INTEGER == 2**53 - 1
    assert "±(2⁵³ − 1)" in TEXT


def test_names_of_files() -> None:
    """Suffix and major version are those of the code."""
    assert f"`{SUFFIX}`" in TEXT
    assert f"`{rules.KEY}` MUST be the integer {rules.FORMAT_MAJOR}." in TEXT


# Examples


def made(example: dict[str, Any], path: Path) -> Path:
    """The file that an example describes; all bytes of its tensors are zero."""
    tensors = {
        key: Tensor(
            record["dtype"], tuple(record["shape"]), bytes(prod(record["shape"]) * DTYPES[record["dtype"]].size)
        )
        for key, record in example["tensors"].items()
    }
    path.write_bytes(b"".join(encode_tensors(tensors, {rules.KEY: json.dumps(example["document"])})))
    return path


def test_every_example_has_a_tag() -> None:
    """All JSON in the text is executed by one of the tests below."""
    tags = {label.partition(":")[0] for kind, label, _ in FENCE.findall(TEXT) if kind == "json"}
    assert tags == {"r=valid", "r=invalid", "r=fingerprint", "r=root", "r=probe", "r=rows", "r=change"}


@pytest.mark.parametrize("example", [example for _, example in fences("r=valid")])
def test_valid_example(example: dict[str, Any], tmp_path: Path) -> None:
    """A valid example breaks no rule, and has the content digest that it states."""
    path = made(example, tmp_path / "example.safetensors")
    assert check_file(path) == []
    if "content_digest" in example:
        assert str(content_digest(read_adapter(path))) == example["content_digest"]


def test_an_example_states_its_content_digest() -> None:
    """Implementers find at least one content digest to compare theirs with."""
    assert any("content_digest" in example for _, example in fences("r=valid"))


@pytest.mark.parametrize(("rule", "example"), fences("r=invalid"), ids=[rule for rule, _ in fences("r=invalid")])
def test_invalid_example(rule: str, example: dict[str, Any], tmp_path: Path) -> None:
    """An invalid example breaks the rule in its tag and no other."""
    findings = check_file(made(example, tmp_path / "example.safetensors"))
    assert {finding.rule for finding in findings} == {rule}


@pytest.mark.parametrize("example", fences("r=fingerprint")[0][1])
def test_fingerprint_example(example: dict[str, Any]) -> None:
    """The fingerprints in the text are those of the code."""
    array = np.array(example["values"]).astype(DTYPES[example["dtype"]].numpy)
    kind, layout = Kind(example.get("kind", "full")), tuple(example.get("layout", ()))
    target = Target(name="w", kind=kind, layout=layout, shape=array.shape, tensors={})
    assert str(target_fingerprint(target, array)) == example["fingerprint"]


def test_root_example() -> None:
    """The root digest in the text is that of the code."""
    [(_, example)] = fences("r=root")
    stated = {name: Digest.parse(text) for name, text in example["fingerprints"].items()}
    assert str(root_digest(stated)) == example["root"]


@pytest.mark.parametrize("example", fences("r=rows")[0][1])
def test_rows_example(example: dict[str, Any]) -> None:
    """The rows of the segments in the text are those of the code."""
    assert from_record(example["segments"]).rows() == example["rows"]


def test_probe_example() -> None:
    """The certificate in the text is that of the code, to the last digit: its numbers are integers."""
    [(_, example)] = fences("r=probe")
    factors = {role: np.array(example[role], dtype=np.float32) for role in ("A", "B")}
    target = Target(
        name="w",
        kind=Kind(example["kind"]),
        layout=tuple(example["layout"]),
        shape=(factors["B"].shape[0], factors["A"].shape[1]),
        scale=example["scale"],
        tensors={role: from_array(array) for role, array in factors.items()},
    )
    assert certify(Adapter(targets=(target,))).to_json() == {"w": {"change": example["change"]}}


CHANGES = [example for text in (TEXT, EXTENSIONS) for example in fences("r=change", text)[0][1]]


@pytest.mark.parametrize("example", CHANGES, ids=lambda example: example["kind"])
def test_change_example(example: dict[str, Any]) -> None:
    """The changes in the text are what the code computes."""

    def array(name: str) -> np.ndarray[Any, Any]:
        return np.array(example[name], dtype=np.float32)

    target = Target(
        name="w",
        kind=Kind(example["kind"]),
        layout=tuple(example.get("layout", ())),
        shape=array("base").shape,
        scale=example.get("scale", 1.0),
        rows=tuple(example.get("rows", ())),
        tensors={
            role: from_array(array(role).astype(np.int64 if role == "index" else np.float32))
            for role in target_rules.ROLES
            if role in example
        },
    )
    np.testing.assert_allclose(merged(target, array("base")), array("result"), rtol=1e-6)


def test_every_kind_has_a_change_example() -> None:
    """No kind is without numbers to try an implementation on."""
    assert {example["kind"] for example in CHANGES} == set(Kind)


# The decisions


@pytest.mark.parametrize("page", sorted((SPEC / "decisions").glob("0*.md")), ids=lambda page: page.stem)
def test_decision_has_its_parts(page: Path) -> None:
    """A decision has its number in the title, a status, the four parts of the template, and fits on a page."""
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {page.name[:4]}: ")
    assert re.search(r"^Status: (proposed|accepted|replaced by .+) · Date: \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == ["Context", "Options", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 60


def test_decisions_are_numbered() -> None:
    """Numbers of decisions leave no gap."""
    numbers = sorted(page.name[:4] for page in (SPEC / "decisions").glob("0*.md"))
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
