"""Making the catalogue again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_adapters import small_adapter

from lora_registry.errors import IntegrityError
from lora_registry.registry import Registry
from lora_registry.store.store import Store


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """A registry with a history: moved, removed, immutable and shared tags, and a collection."""
    for seed in (1, 2, 3):
        registry.push(small_adapter(seed), f"a:{seed}", actor=f"user {seed}")
    registry.push(small_adapter(4), "a:1", move=True)
    registry.tag("a:2", "b:two", immutable=True)
    registry.remove("a:3")
    registry.gc(grace=0)
    registry.push(small_adapter(3), "a:3")
    registry.push(small_adapter(5), "a:3", move=True)
    return registry


def lose_database(store: Store) -> None:
    store.layout.database.unlink()


def damage_database(store: Store) -> None:
    store.layout.database.write_bytes(b"not a database" * 1000)


def lose_journal(store: Store) -> None:
    store.journal.path.unlink()


def damage_journal(store: Store) -> None:
    store.journal.path.write_bytes(store.journal.path.read_bytes().replace(b"user 2", b"user 9"))


def tear_journal(store: Store) -> None:
    with store.journal.path.open("ab") as stream:
        stream.write(b'{"half')
    store.layout.database.unlink()


@pytest.mark.parametrize("damage", [lose_database, damage_database, lose_journal, damage_journal, tear_journal])
def test_whatever_one_of_the_two_lost_the_other_gives_back(filled: Registry, damage: object) -> None:
    """List, log, generations and immutability are what they were, and fsck finds nothing."""
    assert callable(damage)
    listed, log = filled.list(), filled.log()
    damage(Store(filled.root))
    assert filled.fsck() != []
    rebuilt = filled.reindex()
    assert filled.list() == listed
    assert filled.log() == log
    assert (rebuilt.tags, rebuilt.events, rebuilt.lost) == (len(listed), len(log), ())
    assert rebuilt.manifests == 4
    assert filled.fsck() == []
    assert filled.gc(grace=0).manifests  # what was released before is still known as released


def test_a_lost_database_says_which_command_helps(filled: Registry) -> None:
    """It is never mistaken for an empty registry, by readers or by writers."""
    lose_database(Store(filled.root))
    for use in (filled.list, filled.log, filled.gc, lambda: filled.push(small_adapter(1), "x:1")):
        with pytest.raises(IntegrityError, match="loreg reindex"):
            use()


def test_an_old_copy_of_the_database_is_brought_up_to_the_journal(filled: Registry) -> None:
    """Somebody put a backup back: writing is refused, and a reindex catches up."""
    store = Store(filled.root)
    old = store.layout.database.read_bytes()
    filled.push(small_adapter(6), "a:6")
    filled.push(small_adapter(7), "a:7")
    listed, log = filled.list(), filled.log()
    store.layout.database.write_bytes(old)
    with pytest.raises(IntegrityError, match="ahead of the database by 2"):
        filled.push(small_adapter(8), "a:8")
    filled.reindex()
    assert (filled.list(), filled.log()) == (listed, log)


def test_a_lost_blob_is_recorded_as_lost(filled: Registry) -> None:
    """Tags that point to nothing would be worse than tags that are gone; the log says what happened."""
    filled.path("a:2").unlink()
    digest = filled.resolve("a:2").digest
    lose_database(Store(filled.root))
    rebuilt = filled.reindex(actor="mender")
    assert rebuilt.lost == (("a", digest), ("b", digest))
    assert [str(record.reference) for record in filled.list()] == ["a:1", "a:3"]
    assert [(event.action, event.actor) for event in filled.log(limit=2)] == [("lost", "mender")] * 2
    assert {finding.rule for finding in filled.fsck()} == {"S-004"}


def test_two_stories_are_not_mixed(filled: Registry, tmp_path: Path) -> None:
    """Journal and database of different registries: refused, and nothing is changed."""
    other = Registry.open(tmp_path / "other")
    other.push(small_adapter(1), "z:1")
    store = Store(filled.root)
    shutil.copyfile(Store(other.root).journal.path, store.journal.path)
    before = store.layout.database.read_bytes()
    with pytest.raises(IntegrityError, match="differ from event 1"):
        filled.reindex()
    assert store.layout.database.read_bytes() == before


def test_without_both_nothing_is_made_up(filled: Registry) -> None:
    """Names are in neither, so a reindex cannot help, and an empty catalogue would let gc take the blobs."""
    store = Store(filled.root)
    lose_database(store)
    lose_journal(store)
    with pytest.raises(IntegrityError, match="names are lost"):
        filled.reindex()
    with pytest.raises(IntegrityError, match="is lost"):
        filled.gc(grace=0)
    damage_database(store)
    store.journal.path.write_bytes(b"nor a journal\n")
    with pytest.raises(IntegrityError, match="line 1"):
        filled.reindex()


def test_the_old_database_and_journal_are_kept(filled: Registry) -> None:
    """In ``backups/``, as they were, however damaged."""
    store = Store(filled.root)
    damage_database(store)
    old, journal = store.layout.database.read_bytes(), store.journal.path.read_bytes()
    filled.reindex()
    assert {path.suffix: path.read_bytes() for path in store.layout.backups.iterdir()} == {
        ".sqlite": old,
        ".jsonl": journal,
    }


def test_what_sqlite_left_beside_a_lost_database_is_put_aside(filled: Registry) -> None:
    """A rollback journal or write-ahead log that is replayed into another database would damage it."""
    store = Store(filled.root)
    listed = filled.list()
    lose_database(store)
    for path in store.layout.database_side_files:
        path.write_bytes(b"of the old database")
    filled.reindex()
    assert filled.list() == listed
    kept = sorted(path.name.partition("-before-reindex")[2] for path in store.layout.backups.iterdir())
    assert kept == [".jsonl", ".sqlite-journal", ".sqlite-shm", ".sqlite-wal"]
    assert filled.fsck() == []
