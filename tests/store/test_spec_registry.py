"""``spec/registry.md`` says what the code does: its rules, tables, grammars, numbers and examples.

A G rule of a section that is implemented is shown by a test here, whose docstring begins with its id, or by
one that ``ELSEWHERE`` names. What the text calls a contract is checked for what can be checked without it:
that its examples are complete and follow from each other, and that what needs it is refused.
"""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_registry import errors
from lora_registry.adapter import Adapter, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import ConflictError, IntegrityError, LoregError, NotAllowedError, UsageError
from lora_registry.format import limits
from lora_registry.format.canonical import encode
from lora_registry.format.container import encode_tensors
from lora_registry.format.reader import SUFFIX, read_adapter
from lora_registry.registry import GRACE, Registry
from lora_registry.store import fsck, manifest, reference, tables, writer
from lora_registry.store.blobs import BlobStore
from lora_registry.store.database import APPLICATION_ID, BUSY_TIMEOUT
from lora_registry.store.entries import read_entry
from lora_registry.store.events import _TYPES, Action, Event, chain_problem
from lora_registry.store.layout import STORE_VERSION, Layout
from lora_registry.store.lock import StoreLock
from lora_registry.store.migrations import MIGRATIONS
from lora_registry.store.reference import Reference
from lora_registry.store.state import State
from lora_registry.store.store import Store

TESTS = Path(__file__).parents[1]
TEXT = (TESTS.parent / "spec" / "registry.md").read_text(encoding="utf-8")
RULE = re.compile(r"^\*\*(G-\d{3})\*\* (.*)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w+)(?: r=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
KEYWORD = re.compile(r"\b(MUST|SHOULD|MAY)\b")

ELSEWHERE = {
    "G-001": ["store/test_database.py::test_a_folder_that_is_no_registry_is_left_alone"],
    "G-003": ["store/test_reindex.py::test_a_lost_database_says_which_command_helps"],
    "G-006": ["store/test_manifest.py::test_equal_adapters_have_equal_manifests_wherever_they_are_pushed"],
    "G-007": ["store/test_manifest.py::test_anything_else_is_refused"],
    "G-012": ["test_registry.py::test_remotes_are_refused_by_name"],
    "G-013": ["store/test_catalogue.py::test_a_tag_that_points_elsewhere_is_left_alone"],
    "G-014": ["store/test_catalogue.py::test_of_two_who_expect_the_same_one_wins"],
    "G-015": [
        "store/test_catalogue.py::test_an_immutable_tag_neither_moves_nor_goes",
        "store/test_catalogue.py::test_a_tag_can_be_made_immutable_later",
    ],
    "G-016": ["test_registry.py::test_pushing_the_same_again_says_so_and_changes_nothing"],
    "G-017": ["store/test_catalogue.py::test_whatever_is_done_rows_log_and_blobs_agree"],
    "G-019": [
        "store/test_events.py::test_an_event_that_was_changed_is_noticed",
        "store/test_events.py::test_a_chain_that_lacks_or_swaps_events_is_noticed",
    ],
    "G-021": [
        "store/test_database.py::test_wal_is_used_where_its_bug_is_mended",
        "store/test_database.py::test_wal_is_not_used_on_a_network_file_system",
    ],
    "G-022": ["store/test_database.py::test_migrations_that_fail_leave_the_database_as_it_was"],
    "G-023": ["store/test_database.py::test_a_database_from_the_future_is_refused"],
    "G-024": [
        "store/test_crash.py::test_a_commit_that_did_not_happen_is_taken_back",
        "store/test_crash.py::test_killing_push_at_any_moment_leaves_a_sound_registry",
    ],
    "G-025": ["store/test_events.py::test_a_transaction_that_was_not_committed_is_taken_back"],
    "G-026": ["store/test_events.py::test_a_journal_of_another_story_is_refused_and_left_alone"],
    "G-027": ["store/test_events.py::test_a_journal_of_another_story_is_refused_and_left_alone"],
    "G-028": ["store/test_blobs.py::test_chunks_that_fail_leave_nothing"],
    "G-029": ["store/test_blobs.py::test_putting_the_same_bytes_again_mends_a_damaged_blob"],
    "G-030": ["store/test_gc.py::test_a_sweep_waits_for_pushes_and_gives_up"],
    "G-031": [
        "store/test_gc.py::test_a_sweep_waits_for_pushes_and_gives_up",
        "store/test_crash.py::test_a_collection_beside_pushes_takes_nothing_that_they_need",
    ],
    "G-032": ["store/test_crash.py::test_killing_push_at_any_moment_leaves_a_sound_registry"],
    "G-035": ["test_registry.py::test_a_pull_is_verified_and_leaves_nothing_when_it_fails"],
    "G-036": [
        "store/test_gc.py::test_what_has_a_tag_stays",
        "store/test_gc.py::test_what_another_repository_holds_stays",
    ],
    "G-038": [
        "store/test_gc.py::test_what_lost_its_tag_stays_for_the_grace_period_and_goes_then",
        "store/test_gc.py::test_orphans_and_leftovers_go_after_the_grace_period",
    ],
    "G-039": [
        "store/test_reindex.py::test_two_stories_are_not_mixed",
        "store/test_reindex.py::test_without_both_nothing_is_made_up",
    ],
    "G-040": ["store/test_reindex.py::test_a_lost_blob_is_recorded_as_lost"],
    "G-041": ["store/test_reindex.py::test_the_old_database_and_journal_are_kept"],
}
"""Rule to the tests in other files that show it."""

CODES = {
    *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
    *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
    *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
}
"""The error codes of the OCI distribution specification 1.1, section "Error Codes"."""


def body(tag: str) -> str:
    """The one example with this tag, as text."""
    (found,) = [text for _, label, text in FENCE.findall(TEXT) if label == tag]
    return str(found).removesuffix("\n")


def example(tag: str) -> Any:
    """The one example with this tag, as JSON."""
    return json.loads(body(tag))


def prose() -> list[str]:
    """The lines of the text outside of fences, tables and headings."""
    return [line for line in FENCE.sub("", TEXT).splitlines() if line and not line.startswith(("|", "#"))]


def table(*header: str) -> list[list[str]]:
    """The rows of the table with this header, as cells."""
    lines = TEXT.splitlines()
    rows: list[list[str]] = []
    for line in lines[lines.index(f"| {' | '.join(header)} |") + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell: str) -> list[str]:
    """What stands between back quotes in a cell."""
    return re.findall(r"`([^`]*)`", cell)


def sections() -> dict[str, str]:
    """Title to text of the numbered sections."""
    parts = re.split(r"^## (\d+\. .*)$", FENCE.sub("", TEXT), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def implemented() -> set[str]:
    """The rules of the sections whose status is ``implemented``."""
    return {
        rule
        for text in sections().values()
        if re.search(r"^Status: implemented[.;]", text, re.MULTILINE)
        for rule, _ in RULE.findall(text)
    }


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """The adapter of section 2.1."""
    described = example("adapter")
    tensors = {
        key: Tensor(
            record["dtype"], tuple(record["shape"]), bytes(prod(record["shape"]) * DTYPES[record["dtype"]].size)
        )
        for key, record in described["tensors"].items()
    }
    path = tmp_path / "example.safetensors"
    path.write_bytes(b"".join(encode_tensors(tensors, {"loreg": json.dumps(described["document"])})))
    return read_adapter(path)


# Rules and style


def test_rules_are_numbered() -> None:
    """G rules are defined in order and without a gap, and no other is cited."""
    defined = [rule for rule, _ in RULE.findall(TEXT)]
    assert defined == [f"G-{number:03}" for number in range(1, len(defined) + 1)]
    assert set(re.findall(r"G-\d{3}", TEXT)) == set(defined)


@pytest.mark.parametrize(("rule", "sentence"), RULE.findall(TEXT), ids=[rule for rule, _ in RULE.findall(TEXT)])
def test_a_rule_is_one_normative_sentence(rule: str, sentence: str) -> None:
    """A rule is one sentence with a key word, so that it can be cited and broken by itself."""
    assert KEYWORD.search(sentence)
    assert sentence.endswith(".")
    assert not re.search(r"[.;] ", sentence)


def test_every_rule_that_is_implemented_is_shown() -> None:
    """The ids that tests show are those of the sections with the status ``implemented``, and their tests exist."""
    here = re.findall(r'^    """(G-\d{3}(?:, G-\d{3})*): ', Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    assert {rule for found in here for rule in found.split(", ")} | set(ELSEWHERE) == implemented()
    for file, _, name in (place.partition("::") for places in ELSEWHERE.values() for place in places):
        assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8"), name


def test_rules_of_the_check_are_those_of_the_code() -> None:
    """S rules are defined in the table and in ``fsck``; test_fsck compares their sentences and breaks each."""
    assert [rule for rule, *_ in table("id", "severity", "rule")] == list(fsck.RULES)
    assert set(re.findall(r"S-\d{3}", TEXT)) == set(fsck.RULES)


def test_every_section_has_a_status() -> None:
    """A reader knows of every numbered section whether it is implemented, a contract, or informative."""
    for title, text in sections().items():
        (status,) = re.findall(r"^Status: (.*)\.$", text, re.MULTILINE)
        assert re.search(r"implemented|contract|informative", status), title


@pytest.mark.parametrize("word", ["must", "should", "may", "shall"])
def test_key_words_are_in_capitals(word: str) -> None:
    """The key words of BCP 14 do not occur in lower case, where nobody knows whether they bind."""
    assert re.findall(rf".*\b{word}\b.*", FENCE.sub("", TEXT)) == []


def test_one_sentence_a_line() -> None:
    """A line holds one sentence, so that changes of the text can be read."""
    assert [line for line in prose() if re.search(r"[.?!] [A-Z]", re.sub(r"^\d+\. ", "", line))] == []


def test_what_binds_is_a_rule() -> None:
    """Outside of rules the key words occur only where they are declared."""
    outside = [line for line in prose() if KEYWORD.search(line) and not RULE.match(line)]
    assert [line for line in outside if not line.startswith("The key words")] == []


def test_every_example_is_executed() -> None:
    """All JSON and grammar in the text is used by one of the tests below."""
    source = Path(__file__).read_text(encoding="utf-8")
    used = set(re.findall(r'(?:body|example)\("([a-z-]+)"\)', source))
    assert used == {label for kind, label, _ in FENCE.findall(TEXT) if kind != "text"}


# 1. The folder


def test_names_in_the_folder(registry: Registry, adapter: Adapter) -> None:
    """A registry that was used has the files of the table, and the marker says what the example says."""
    registry.push(adapter, "support/tone:1.0")
    stated = {code(name)[0].partition("/")[0] for name, *_ in table("name", "what it is", "where it is missing")}
    assert stated == {path.name for path in registry.root.iterdir()}
    assert json.loads((registry.root / "loreg-store.json").read_text()) == example("marker")
    assert example("marker")["version"] == STORE_VERSION
    assert f"| Catalogue schema | {len(MIGRATIONS)} (" in TEXT
    assert f"| Layout version | {STORE_VERSION} |" in TEXT


@pytest.mark.parametrize(
    ("marker", "error"),
    [('{"format": "loreg store", "version": 2}', ConflictError), ('{"format": "loreg store"}', IntegrityError)],
)
def test_a_folder_of_another_version(registry: Registry, marker: str, error: type[LoregError]) -> None:
    """G-002: A layout that is newer, or does not say its version, is refused."""
    registry.root.mkdir()
    (registry.root / "loreg-store.json").write_text(marker)
    with pytest.raises(error):
        registry.list()


def test_the_marker_comes_last(registry: Registry) -> None:
    """G-004: Where a folder of the registry cannot be made, there is no marker and so no registry."""
    registry.root.mkdir()
    (registry.root / "backups").write_text("in the way")
    with pytest.raises(LoregError):
        Layout(registry.root).create()
    assert not Layout(registry.root).exists()


def test_a_folder_made_by_hand_is_a_registry(tmp_path: Path, adapter: Adapter) -> None:
    """Marker, lock, blobs and journal as in the text, without a catalogue, are a whole registry after a reindex."""
    source = Registry.open(tmp_path / "source")
    source.push(adapter, "elsewhere:1")
    root = tmp_path / "by-hand"
    for name in ("blobs", "tmp", "backups"):
        (root / name).mkdir(parents=True)
    (root / "loreg-store.json").write_text(body("marker"))
    (root / "lock").touch()
    (root / "journal.jsonl").write_text(body("journal") + "\n")
    for name in ("native file", "document", "manifest"):
        digest = Digest.parse(example("digests")[name])
        path = root / "blobs" / "sha256" / digest.hex[:2] / digest.hex
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(Store(source.root).blobs.read(digest))
        path.chmod(0o444)
    made = Registry.open(root)
    rebuilt = made.reindex()
    assert (rebuilt.manifests, rebuilt.tags, rebuilt.lost) == (1, 1, ())
    assert made.fsck() == []
    assert str(made.resolve("support/tone:prod").digest) == example("digests")["manifest"]


# 2. The manifest


def test_manifest_example(registry: Registry, adapter: Adapter) -> None:
    """G-005: The blobs of the example have the bytes and the digests in the text."""
    record = registry.push(adapter, "support/tone:1.0")
    blobs = Store(registry.root).blobs
    stored = blobs.read(record.digest)
    assert stored == encode(example("manifest"))
    config = Digest.parse(example("manifest")["config"]["digest"])
    assert blobs.read(config) == body("document").encode()
    assert f"has these {len(blobs.read(config))} bytes" in TEXT
    assert json.loads(body("document")) == example("adapter")["document"]
    assert example("digests") == {
        "native file": str(record.blob),
        "document": str(config),
        "content": str(record.content),
        "manifest": str(record.digest),
        "manifest size": len(stored),
    }
    assert example("summary") == record.summary.to_json()


def test_table_of_the_manifest() -> None:
    """The constants of the table are those of the example, and its fields are all that the example has."""

    def flat(value: Any, path: str = "") -> dict[str, Any]:
        if isinstance(value, dict) and path not in {"annotations", "layers[0].annotations"}:
            return {k: v for key in value for k, v in flat(value[key], f"{path}.{key}".lstrip(".")).items()}
        if isinstance(value, list):
            return {k: v for n, item in enumerate(value) for k, v in flat(item, f"{path}[{n}]").items()}
        return (
            {f'annotations["{key}"]': item for key, item in value.items()} if path == "annotations" else {path: value}
        )

    found = flat(example("manifest"))
    stated = {name: value for names, value in table("field", "value") for name in code(names)}
    assert set(found) == set(stated) - {"layers"}
    for name, value in stated.items():
        if name.lower().endswith("type"):
            assert code(value) == [found[name]], name
    assert found["layers[0].annotations"] == {"org.opencontainers.image.title": f"adapter{SUFFIX}"}
    assert f"always `adapter{SUFFIX}`" in stated["layers[0].annotations"]


def test_a_manifest_has_a_largest_size(store: Store) -> None:
    """G-008: A blob that is too large for a manifest is not read as one."""
    assert f"more than {manifest.MANIFEST_BYTES} bytes" in TEXT
    digest = store.blobs.put([bytes(manifest.MANIFEST_BYTES + 1)])
    with pytest.raises(IntegrityError, match="too large"):
        read_entry(store.blobs, digest)


# 3. References


def regular(grammar: str) -> str:
    """The regular expression of the first symbol of an EBNF grammar of the OCI kind, which has no recursion."""
    rules = dict(re.findall(r"^(\w+)\s*::= (.*)$", grammar, re.MULTILINE))
    token = re.compile(r'"(?P<literal>[^"]*)"|(?P<set>\[(?:[^\]])*\])|(?P<symbol>\w+)|(?P<other>[()|*+?]|\{[\d,]+\}| )')

    def expanded(symbol: str) -> str:
        parts: list[str] = []
        position = 0
        while position < len(rules[symbol]):
            match = token.match(rules[symbol], position)
            assert match is not None, rules[symbol][position:]
            position = match.end()
            if match["literal"] is not None:
                parts.append(f"(?:{re.escape(match['literal'])})")
            elif match["symbol"]:
                parts.append(f"(?:{expanded(match['symbol'])})")
            else:
                parts.append((match["set"] or match["other"]).strip())
        return "".join(parts)

    return expanded(next(iter(rules)))


GRAMMAR = re.compile(regular(body("reference")), re.ASCII)


MADE = st.from_regex(GRAMMAR, fullmatch=True).filter(lambda text: len(text) < 200)
LETTERS = st.sampled_from("ab0AZ_.-:/@[]é\n")


@given(MADE)
def test_what_the_grammar_makes_is_a_reference(text: str) -> None:
    """G-009: Every short text that the grammar makes is read, and printed as it was."""
    assert str(Reference.parse(text, default_tag=None)) == text


@given(
    st.text(LETTERS, max_size=12)
    | st.text(max_size=12)
    | st.builds(lambda text, at, letter: text[:at] + letter + text[at:], MADE, st.integers(0, 200), LETTERS)
)
def test_what_is_read_follows_the_grammar(text: str) -> None:
    """The code reads exactly the texts that the grammar makes."""
    try:
        Reference.parse(text)
    except UsageError:
        assert not GRAMMAR.fullmatch(text)
    else:
        assert GRAMMAR.fullmatch(text)


@pytest.mark.parametrize("case", example("references"), ids=lambda case: case["text"][:30])
def test_reference_example(case: dict[str, str]) -> None:
    """G-010: The references of the text have the parts that it states."""
    parsed = Reference.parse(case["text"])
    digest = None if parsed.digest is None else str(parsed.digest)
    assert (parsed.host, parsed.repository, parsed.tag, digest) == (
        case.get("host"),
        case["repository"],
        case.get("tag"),
        case.get("digest"),
    )


@pytest.mark.parametrize("text", example("no-references"))
def test_text_that_is_no_reference(text: str) -> None:
    """The texts that the text refuses are refused."""
    assert not GRAMMAR.fullmatch(text)
    with pytest.raises(UsageError):
        Reference.parse(text)


def test_limits_of_references() -> None:
    """The numbers of the grammar and beside it are those of the code."""
    assert f"at most {reference.NAME_LENGTH} characters" in TEXT
    assert f"{{0,{reference.TAG_LENGTH - 1}}}" in body("reference")
    assert f"the tag is `{reference.DEFAULT_TAG}`" in TEXT
    longest = "/".join(["a" * 127, "b" * 127])
    assert len(longest) == reference.NAME_LENGTH
    assert Reference.parse(longest).repository == longest
    with pytest.raises(UsageError):
        Reference.parse(longest + "b")
    with pytest.raises(UsageError):
        Reference.parse("h:1/" + longest[4:] + "b")


def test_a_digest_decides(registry: Registry, adapter: Adapter) -> None:
    """G-011: The tag beside a digest is not looked up."""
    record = registry.push(adapter, "support/tone:1.0")
    assert registry.resolve(f"support/tone:none@{record.digest}").digest == record.digest


# 5. Events


def events() -> list[Event]:
    """The events of the journal in the text; each is refused where its hash is not that of its fields."""
    return [Event.from_json(json.loads(line)) for line in body("journal").splitlines()]


def test_event_example() -> None:
    """The first event of the journal is what was sealed, and its hash is the sha256 of those bytes."""
    first = json.loads(body("journal").splitlines()[0])
    assert Digest.of(body("sealed").encode()) == Digest.parse(first["hash"])
    assert example("sealed") == {key: value for key, value in first.items() if key != "hash"}
    assert body("sealed").encode() == encode(example("sealed"))


def test_journal_example() -> None:
    """The lines are canonical, the chain is whole, the adapter is that of section 2.1, and the state is the stated."""
    assert [encode(event.to_json()).decode() for event in events()] == body("journal").splitlines()
    assert chain_problem(events()) is None
    assert {str(event.digest) for event in events()} == {example("digests")["manifest"]}
    state = State.after(events())
    assert example("state") == {
        "holdings": [
            {"repository": repository, "manifest": str(digest), "created": held.created, "released": held.released}
            for (repository, digest), held in state.holdings.items()
        ],
        "tags": [
            {
                "repository": repository,
                "name": name,
                "manifest": str(tag.manifest),
                "generation": tag.generation,
                "immutable": tag.immutable,
                "updated": tag.updated,
            }
            for (repository, name), tag in state.tags.items()
        ],
    }


def test_events_are_only_added(registry: Registry, adapter: Adapter) -> None:
    """G-018: Whatever is done, the journal before is the beginning of the journal after."""
    journal = registry.root / "journal.jsonl"
    before = b""
    for step in (
        lambda: registry.push(adapter, "a:1"),
        lambda: registry.tag("a:1", "2"),
        lambda: registry.remove("a:1"),
        lambda: registry.remove("a:2"),
        lambda: registry.gc(grace=0),
        registry.reindex,
    ):
        step()
        assert journal.read_bytes().startswith(before)
        before = journal.read_bytes()
    assert len(before.splitlines()) == 5


def test_table_of_events() -> None:
    """Fields, types and actions of the text are those of the code."""
    types = {int: "integer", str: "string", bool: "boolean", type(None): "null"}
    stated = {code(name)[0]: type_ for name, type_, _ in table("field", "type", "meaning")}
    assert list(stated) == list(_TYPES)
    for name, type_ in stated.items():
        spelled = re.sub(r"\b(time|digest)\b", "string", type_)
        assert spelled == " or ".join(types[kind] for kind in _TYPES[name]), name
    actions = [
        action for cell, *_ in table("action", "`tag`", "`before`", "`after`", "effect") for action in code(cell)
    ]
    assert actions == [action.value for action in Action]
    assert f"1 to {writer.ACTOR_LENGTH} printable characters" in TEXT


# 6. The catalogue


def words(connection: sqlite3.Connection) -> list[list[str]]:
    """What a database's schema says, statement by statement, whatever the white space."""
    statements = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
    return [re.findall(r'["\w]+|[(),]', statement) for (statement,) in statements]


def test_schema_example(store: Store) -> None:
    """The statements of the text make the tables and indexes of a new catalogue, and its migrations are named."""
    with closing(sqlite3.connect(":memory:")) as stated, closing(sqlite3.connect(store.layout.database)) as made:
        stated.executescript(body("schema"))
        assert words(stated) == words(made)
        (row,) = made.execute("SELECT position, name FROM migrations")
        assert f"with position {row[0]} and the name `{row[1]}`" in TEXT
        assert made.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),) == (1,)


def test_table_of_tables(store: Store) -> None:
    """Tables and columns of the text are those of a new catalogue, as is its application id."""
    with closing(sqlite3.connect(store.layout.database)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        made = {name: [row[1] for row in connection.execute(f"PRAGMA table_info({name})")] for name in names}
        (application,) = connection.execute("PRAGMA application_id").fetchone()
    assert {code(name)[0]: code(columns) for name, columns, _ in table("table", "columns", "what it says")} == made
    assert set(tables.METADATA.tables) == set(made) - {"migrations"}
    assert application == APPLICATION_ID == int.from_bytes(b"LoRg", "big")
    assert f"`application_id` 0x{APPLICATION_ID:X}, in ASCII `LoRg`" in TEXT


def test_a_writer_is_alone_from_the_beginning(store: Store) -> None:
    """G-020: Nobody else can begin to write once a writer has begun, even before it wrote anything."""
    other = sqlite3.connect(store.layout.database, isolation_level=None, timeout=0)
    with closing(other), store.database.writing():
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.execute("BEGIN")  # readers are free to


# 7. Publishing, and 8. Garbage collection


def test_a_push_that_its_tag_refuses_publishes_nothing(registry: Registry, adapter: Adapter, tmp_path: Path) -> None:
    """G-033: The blobs are what they were before."""
    other = json.loads(body("adapter"))
    other["document"]["info"]["title"] = "Another one"
    tensors = {
        key: Tensor(record["dtype"], tuple(record["shape"]), bytes(2 * prod(record["shape"])))
        for key, record in other["tensors"].items()
    }
    path = tmp_path / "other.safetensors"
    path.write_bytes(b"".join(encode_tensors(tensors, {"loreg": json.dumps(other["document"])})))
    registry.push(adapter, "support/tone:1.0")
    blobs = [*Store(registry.root).blobs]
    with pytest.raises(ConflictError):
        registry.push(read_adapter(path), "support/tone:1.0")
    registry.tag("support/tone:1.0", "1.0", immutable=True)
    with pytest.raises(NotAllowedError):
        registry.push(read_adapter(path), "support/tone:1.0", move=True)
    assert [*Store(registry.root).blobs] == blobs


def test_what_leaves_is_a_copy(registry: Registry, adapter: Adapter, tmp_path: Path) -> None:
    """G-034: A change of the file that was pulled is no change of the blob."""
    registry.push(adapter, "support/tone:1.0")
    pulled = registry.pull("support/tone:1.0", tmp_path / "out")
    assert not pulled.samefile(registry.path("support/tone:1.0"))
    assert registry.path("support/tone:1.0").stat().st_nlink == 1
    pulled.chmod(0o644)
    pulled.write_bytes(b"changed")
    assert registry.fsck() == []


def test_holdings_go_before_their_blobs(registry: Registry, adapter: Adapter, monkeypatch: pytest.MonkeyPatch) -> None:
    """G-037: When the first blob goes, another process sees that its manifest is dropped."""
    registry.push(adapter, "support/tone:1.0")
    registry.remove("support/tone:1.0")
    seen: list[str] = []
    delete = BlobStore.delete

    def watched(blobs: BlobStore, digest: Digest) -> None:
        with closing(sqlite3.connect(registry.root / "catalogue.sqlite")) as other:
            seen.extend(row[0] for row in other.execute("SELECT action FROM events ORDER BY sequence DESC LIMIT 1"))
        delete(blobs, digest)

    monkeypatch.setattr(BlobStore, "delete", watched)
    assert len(registry.gc(grace=0).blobs) == 3
    assert seen == ["drop"] * 3


def test_times_to_wait(store: Store) -> None:
    """The numbers of seconds and hours in the text are those of the code."""
    assert f"waits {StoreLock(store.layout.lock).timeout:g} seconds" in TEXT
    assert StoreLock(store.layout.lock).timeout == BUSY_TIMEOUT / 1000
    assert f"The grace period is {GRACE / 3600:g} hours" in TEXT


# 12. to 16. OCI


def check_descriptor(descriptor: dict[str, Any]) -> None:
    """The rules of the OCI image specification's content-descriptor.json and defs-descriptor.json."""
    assert set(descriptor) <= {"mediaType", "digest", "size", "artifactType", "annotations"}
    restricted = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838, section 4.2
    assert re.fullmatch(f"{restricted}/{restricted}", descriptor["mediaType"], re.ASCII)
    assert Digest.parse(descriptor["digest"])
    assert type(descriptor["size"]) is int
    assert 0 <= descriptor["size"] < 2**63
    assert all(type(value) is str for value in descriptor.get("annotations", {}).values())


def check_described(descriptor: dict[str, Any], content: bytes) -> None:
    """That a descriptor is that of these bytes."""
    assert (descriptor["digest"], descriptor["size"]) == (str(Digest.of(content)), len(content))


@pytest.mark.parametrize("name", ["manifest", "referrer"])
def test_a_manifest_is_one_of_the_image_specification(name: str) -> None:
    """The fields are those of image-manifest-schema.json, as the specification demands them of an artifact."""
    document = {"manifest": example("manifest"), "referrer": example("referrer")}[name]
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == manifest.MANIFEST_TYPE
    assert set(document) <= {
        *("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations"),
    }
    subject = [document["subject"]] if "subject" in document else []
    for descriptor in (document["config"], *document["layers"], *subject):
        check_descriptor(descriptor)
    assert len(document["layers"]) == 1
    assert document["artifactType"] in {code(row[0])[0] for row in table("media type", "of", "made by")}


def test_referrer_example() -> None:
    """The receipt is the layer, the empty object the config, the adapter the subject, and the index has all of it."""
    referrer = example("referrer")
    check_described(referrer["config"], b"{}")
    check_described(referrer["layers"][0], encode(example("receipt")))
    check_described(referrer["subject"], encode(example("manifest")))
    assert example("receipt")["adapter"] == example("digests")["content"]
    (artifact_type, title) = next(
        (code(kind)[0], code(name)[0])
        for what, kind, _, name in table(
            "what", "`artifactType`, also the layer's media type", "the layer", "its title"
        )
        if what == "receipt of a merge"
    )
    assert referrer["artifactType"] == referrer["layers"][0]["mediaType"] == artifact_type
    assert referrer["layers"][0]["annotations"] == {"org.opencontainers.image.title": title}
    (listed,) = example("referrers-index")["manifests"]
    check_descriptor(listed)
    check_described(listed, encode(referrer))
    assert listed["artifactType"] == artifact_type
    assert f"Its digest is `{Digest.of(encode(referrer))}`" in TEXT
    assert f"`sha256-{Digest.parse(example('digests')['manifest']).hex}`" in TEXT


def test_layout_example() -> None:
    """The index has the tags of the state of section 5.1, and the marker is that of the image specification."""
    assert example("layout") == {"imageLayoutVersion": "1.0.0"}
    index = example("layout-index")
    (tag,) = example("state")["tags"]
    (listed,) = index["manifests"]
    check_descriptor(listed)
    check_described(listed, encode(example("manifest")))
    assert listed["artifactType"] == manifest.ARTIFACT_TYPE
    assert listed["annotations"] == {"org.opencontainers.image.ref.name": tag["name"]}
    assert index["annotations"] == {"dev.loreg.repository": tag["repository"]}


def test_table_of_media_types() -> None:
    """The types that the code writes are in the table, and no other of loreg's is in the text."""
    stated = {code(name)[0] for name, *_ in table("media type", "of", "made by")}
    assert {manifest.MANIFEST_TYPE, manifest.ARTIFACT_TYPE, manifest.CONFIG_TYPE, manifest.LAYER_TYPE} <= stated
    assert set(re.findall(r"application/vnd\.[a-z0-9.+]+", TEXT)) == stated


def test_table_of_annotations() -> None:
    """The annotations that the code and the examples write are all in the table."""
    stated = {code(name)[0]: code(where) for name, where, _ in table("annotation", "stands on", "value")}
    assert {manifest.CONTENT, manifest.BASE_NAME, manifest.LICENSE} == set(example("manifest")["annotations"])
    written = set(re.findall(r'"((?:dev\.loreg|org\.opencontainers\.image)\.[a-z.]+)": "', TEXT))
    assert written == set(stated)


def test_limits_of_a_pull() -> None:
    """The limits are those of the code that reads the same things in a local registry."""
    stated = dict(table("limit", "value"))
    assert stated["bytes of a manifest or an index"] == str(manifest.MANIFEST_BYTES)
    assert stated["bytes of a document"] == str(limits.HEADER_BYTES)
    assert f"at most {limits.JSON_DEPTH} levels" in TEXT
    steps = table("step", "what is done", "else")
    assert [number for number, *_ in steps] == [str(number) for number in range(1, len(steps) + 1)]
    assert f"stop after {manifest.MANIFEST_BYTES} bytes" in steps[0][1]
    assert f"at most {limits.HEADER_BYTES};" in steps[6][1]


# 18. Errors


def test_tables_of_errors() -> None:
    """Every code of the distribution specification has an error of loreg's, with the exit code that it has."""
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LoregError)]
    exits = {kind.code: str(kind.exit_code) for kind in tree}
    by_code = table("code of the distribution specification", "error", "exit")
    assert {code(name)[0] for name, *_ in by_code} == CODES
    assert len(by_code) == len(CODES)
    for _, error, number in (*by_code, *table("what happens", "error", "exit")):
        assert exits[code(error)[0]] == number
    for _, _, error in table("step", "what is done", "else"):
        assert not code(error) or code(error)[0] in exits
