"""``spec/registry.md`` sections 1, 2 and 4 to 8: the folder is what the text says, example by example."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from registry_spec import TEXT, body, example, example_adapter, table
from spec_pages import code

from lora_registry.adapter import Adapter
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError, LoregError, NotAllowedError
from lora_registry.format.canonical import encode
from lora_registry.format.reader import SUFFIX
from lora_registry.registry import GRACE, Registry
from lora_registry.store import manifest, tables, writer
from lora_registry.store.blobs import BlobStore
from lora_registry.store.database import APPLICATION_ID, BUSY_TIMEOUT
from lora_registry.store.entries import read_entry
from lora_registry.store.events import _TYPES, Action, Event, chain_problem
from lora_registry.store.layout import STORE_VERSION, Layout
from lora_registry.store.migrations import MIGRATIONS
from lora_registry.store.state import State
from lora_registry.store.store import Store


@pytest.fixture
def adapter(tmp_path: Path) -> Adapter:
    """The adapter of section 2.1."""
    return example_adapter(tmp_path)


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
    [
        ('{"format": "loreg store", "version": 2}', ConflictError),
        ('{"format": "loreg store", "version": 0}', ConflictError),
        ('{"format": "loreg store"}', IntegrityError),
        ('{"format": "loreg store", "version": true}', IntegrityError),
        ('{"format": "loreg store", "version": 1.0}', IntegrityError),
        ('{"format": "loreg store", "version": "1"}', IntegrityError),
        ('{"format": "another store", "version": 1}', IntegrityError),
        ('{"version": 1}', IntegrityError),
        ('{"format": "loreg store", "version": 1, "version": 1}', IntegrityError),
        ("[1]", IntegrityError),
        ("\udc80", IntegrityError),
    ],
)
def test_a_folder_of_another_version(registry: Registry, marker: str, error: type[LoregError]) -> None:
    """G-002: A layout that is newer or does not say its version is refused, and so is another format."""
    registry.root.mkdir()
    (registry.root / "loreg-store.json").write_text(marker, errors="surrogateescape")
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


# 4. Tags, and 5. Events


def test_a_digest_decides(registry: Registry, adapter: Adapter) -> None:
    """G-011: The tag beside a digest is not looked up."""
    record = registry.push(adapter, "support/tone:1.0")
    assert registry.resolve(f"support/tone:none@{record.digest}").digest == record.digest


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
        for position, name in made.execute("SELECT position, name FROM migrations"):
            assert f"with position {position} and the name `{name}`" in TEXT
        assert made.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),) == (2,)


def test_seal_example(registry: Registry, store: Store, adapter: Adapter) -> None:
    """The row of the adapter of section 2.1 has the sha256 of the bytes in the text as its seal."""
    registry.push(adapter, "support/tone:1.0")
    with store.database.reading() as connection:
        (row,) = connection.exec_driver_sql("SELECT * FROM manifests").mappings().all()
    assert example("seal") == {name: value for name, value in row.items() if name != "seal"}
    assert row["seal"] == str(Digest.of(body("seal").encode()))


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
    other = example_adapter(tmp_path, title="Another one")
    registry.push(adapter, "support/tone:1.0")
    blobs = [*Store(registry.root).blobs]
    with pytest.raises(ConflictError):
        registry.push(other, "support/tone:1.0")
    registry.tag("support/tone:1.0", "1.0", immutable=True)
    with pytest.raises(NotAllowedError):
        registry.push(other, "support/tone:1.0", move=True)
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
    assert f"waits {store.lock.timeout:g} seconds" in TEXT
    assert store.lock.timeout == BUSY_TIMEOUT / 1000
    assert f"The grace period is {GRACE / 3600:g} hours" in TEXT
