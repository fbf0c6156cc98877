"""The recipe for SQLite: who waits for whom, what is on, and what errors mean."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import pytest
from small_adapters import small_adapter
from sqlalchemy import Connection, create_engine

from lora_registry.errors import ConflictError, IntegrityError, LoregError, NotAllowedError
from lora_registry.registry import Registry
from lora_registry.store import database as module
from lora_registry.store import tables
from lora_registry.store.database import Database, file_system, journal_mode, wal_is_safe
from lora_registry.store.migrations import MIGRATIONS, Migration
from lora_registry.store.store import Store


@pytest.fixture
def database(tmp_path: Path) -> Database:
    database = Database(tmp_path / "catalogue.sqlite")
    database.create()
    return database


def pragma(connection: Connection, name: str) -> object:
    return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


def test_every_connection_is_set_up(database: Database) -> None:
    """Foreign keys are enforced, commits are synced with their folder, and readers cannot write."""
    with database.writing() as connection:
        assert pragma(connection, "foreign_keys") == 1
        assert pragma(connection, "synchronous") == 3
        assert pragma(connection, "busy_timeout") == module.BUSY_TIMEOUT
        assert pragma(connection, "query_only") == 0
        assert pragma(connection, "journal_mode") == journal_mode(database.path.parent)
        assert pragma(connection, "user_version") == len(MIGRATIONS)
    with pytest.raises(NotAllowedError, match="readonly"), database.reading() as connection:
        connection.exec_driver_sql("DELETE FROM tags")


def test_the_tables_are_what_the_migrations_make(database: Database) -> None:
    """Columns, keys, nullability and indexes agree, so that queries meet what is there."""
    declared = create_engine("sqlite://")
    tables.METADATA.create_all(declared)
    with database.reading() as made, declared.connect() as wanted:
        assert shape(made) - {("migrations",)} == shape(wanted)


def shape(connection: Connection) -> set[tuple[object, ...]]:
    """Every table, column, foreign key and index that SQLite tells of."""
    names = list(connection.exec_driver_sql("SELECT name FROM sqlite_schema WHERE type = 'table'").scalars())
    found: set[tuple[object, ...]] = {(name,) for name in names}
    for name in set(names) - {"migrations"}:
        for what in ("table_info", "foreign_key_list", "index_list"):
            for row in connection.exec_driver_sql(f"PRAGMA {what}({name})"):
                # The position of an index in the list is the order of its making, and means nothing.
                found.add((name, what, *(row[1:] if what == "index_list" else row)))
    return found


def test_a_block_that_fails_changes_nothing(database: Database) -> None:
    """What a writer did before its error is rolled back."""
    with suppress(KeyError), database.writing() as connection:
        connection.exec_driver_sql("INSERT INTO migrations VALUES (99, 'x', 'x')")
        raise KeyError
    with database.reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM migrations").scalar() == len(MIGRATIONS)


def test_a_writer_waits_for_another_and_says_so_in_the_end(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write lock is taken at the begin, and a timeout is a conflict, not a crash."""
    monkeypatch.setattr(module, "BUSY_TIMEOUT", 20)
    with database.writing(), pytest.raises(ConflictError, match="locked"), database.writing():
        pass


def test_a_damaged_database_names_the_command_that_mends_it(database: Database) -> None:
    """Garbage instead of pages, or instead of a database."""
    database.path.write_bytes(b"no database at all, but long enough to look at" * 100)
    with pytest.raises(IntegrityError, match="loreg reindex"):
        database.version()
    with pytest.raises(IntegrityError, match="loreg reindex"), database.reading():
        pass


def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """An SQLite file without our application id is not touched."""
    path = tmp_path / "other.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE things (name)")
    with pytest.raises(IntegrityError, match="not one of loreg"):
        Database(path).version()


def test_a_missing_database_is_not_made_by_looking(tmp_path: Path) -> None:
    """A lost catalogue must not look like an empty one."""
    with pytest.raises(NotAllowedError), Database(tmp_path / "nothing.sqlite").reading():
        pass
    assert list(tmp_path.iterdir()) == []


def test_dangling_rows_are_found(database: Database) -> None:
    """Rows that point nowhere are problems, which SQLite alone does not tell."""
    assert database.problems() == []
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("INSERT INTO tags VALUES ('a', 'b', 'c', 1, 0, 'now')")
        connection.commit()
    assert database.problems() == ["row 1 of tags points to a row of holdings that is not there"]


@pytest.mark.parametrize(
    ("version", "safe"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 0), False),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 0), True),
    ],
)
def test_wal_is_used_where_its_bug_is_mended(version: tuple[int, int, int], safe: bool) -> None:
    """3.51.3 has the fix, and 3.50.7 and 3.44.6 have it too."""
    assert wal_is_safe(version) is safe


def test_wal_is_not_used_on_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on one that nobody knows; the longest mount point that holds the folder decides."""
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} nfs4 rw 0 0\nc {tmp_path}/my\\040disk xfs rw 0 0\n")
    for folder in ("my disk/x", "share"):
        (tmp_path / folder).mkdir(parents=True)
    assert file_system(tmp_path / "share", str(mounts)) == "nfs4"
    assert file_system(tmp_path / "my disk" / "x", str(mounts)) == "xfs"
    assert file_system(Path("/"), str(mounts)) == "ext4"
    assert file_system(tmp_path, str(tmp_path / "nothing")) is None
    for kind, mode in (("ext4", "wal"), ("nfs4", "delete"), (None, "delete")):
        monkeypatch.setattr(module, "file_system", lambda _path, kind=kind: kind)
        assert journal_mode(tmp_path, (3, 51, 3)) == mode
        assert journal_mode(tmp_path, (3, 40, 1)) == "delete"


def test_a_wal_database_is_put_back_by_an_sqlite_with_the_bug(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a newer SQLite made is made safe before an older one uses it."""
    with closing(sqlite3.connect(database.path)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
    monkeypatch.setattr(module, "wal_is_safe", lambda _version: False)
    with database.writing() as connection:
        assert pragma(connection, "journal_mode") == "delete"


def test_a_registry_with_a_write_ahead_log_does_all_the_same(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Push, collect and swap the database under WAL; nothing of the old log is left for the new database."""
    monkeypatch.setattr(module, "journal_mode", lambda _folder: "wal")
    store = Store(registry.root)
    for seed in range(3):
        registry.push(small_adapter(seed), f"a:{seed}")
    with store.database.reading() as connection:
        assert pragma(connection, "journal_mode") == "wal"
    registry.remove("a:2")
    listed, log = registry.list(), registry.log()
    registry.reindex()
    assert (registry.list(), registry.log()) == (listed, log)
    assert len(registry.gc(grace=0).manifests) == 1
    assert registry.fsck() == []
    assert not any(path.exists() for path in store.layout.database_side_files)


def _add_column(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE manifests ADD COLUMN note TEXT")


def _fail(connection: Connection) -> None:
    connection.exec_driver_sql("CREATE TABLE half (done)")
    connection.exec_driver_sql("CREATE TABLE half (again)")


NEWER = (*MIGRATIONS, Migration("0003-add-note", _add_column))


def test_an_old_database_is_backed_up_and_migrated(store: Store) -> None:
    """Opening a registry with newer code brings its database up to date, once, and keeps a copy."""
    newer = Store(store.layout.root, NEWER)
    newer.prepare()
    newer.prepare()
    assert newer.database.version() == len(NEWER)
    (backup,) = store.layout.backups.iterdir()
    assert Database(backup).version() == len(MIGRATIONS)


def test_a_database_from_the_future_is_refused(store: Store) -> None:
    """A clear line that says to upgrade, before anything is read or written."""
    Store(store.layout.root, NEWER).prepare()
    with pytest.raises(ConflictError, match="newer loreg"), store.reading():
        pass
    with pytest.raises(ConflictError, match="newer loreg"):
        store.database.upgrade()


def test_migrations_that_fail_leave_the_database_as_it_was(store: Store) -> None:
    """All steps are one transaction."""
    broken = Store(store.layout.root, (*NEWER, Migration("0004-fail", _fail)))
    with pytest.raises(Exception, match="already exists"):
        broken.prepare()
    assert store.database.version() == len(MIGRATIONS)
    with store.reading() as catalogue:
        assert "note" not in str(catalogue.connection.exec_driver_sql("SELECT sql FROM sqlite_schema").all())
    assert not list(store.layout.temporary.iterdir())


def test_a_database_of_other_migrations_is_refused(store: Store) -> None:
    """The names are compared, not only the number."""
    other = Database(store.layout.database, (Migration("0001-something-else", _add_column), *NEWER[1:]))
    with pytest.raises(IntegrityError, match="0001-something-else"):
        other.upgrade()


def test_several_processes_may_migrate_at_once(store: Store) -> None:
    """Four of them open an old registry with newer code: one migrates, nobody fails."""
    code = f"""
from pathlib import Path
from lora_registry.store.migrations import MIGRATIONS, Migration
from lora_registry.store.store import Store
def step(connection): connection.exec_driver_sql("ALTER TABLE manifests ADD COLUMN note TEXT")
Store(Path({str(store.layout.root)!r}), (*MIGRATIONS, Migration("0003-add-note", step))).prepare()
"""
    workers = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    assert Store(store.layout.root, NEWER).database.version() == len(NEWER)
    assert len(list(store.layout.backups.iterdir())) == 1


@pytest.mark.parametrize(
    "how",
    [
        "marker from the future",
        "marker without a version",
        "marker that is a pipe",
        "foreign folder",
        "a file",
    ],
)
def test_a_folder_that_is_no_registry_is_left_alone(tmp_path: Path, how: str) -> None:
    """Nothing is written into a folder that holds something else, or that a newer loreg laid out."""
    root = tmp_path / "folder"
    spoil: dict[str, Callable[[], object]] = {
        "marker from the future": lambda: (root / "loreg-store.json").write_text(
            '{"format": "loreg store", "version": 2}'
        ),
        "marker without a version": lambda: (root / "loreg-store.json").write_text("[]"),
        "marker that is a pipe": lambda: os.mkfifo(root / "loreg-store.json"),
        "foreign folder": lambda: (root / "thesis.tex").write_text("years of work"),
        "a file": lambda: (root.rmdir(), root.write_text("file")),
    }
    root.mkdir()
    spoil[how]()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LoregError):
        Store(root).prepare()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_database_of_schema_1_is_sealed(registry: Registry, store: Store) -> None:
    """Every row gets the seal that a new push would give it, and what is listed is what was listed."""
    for seed in (1, 2):
        registry.push(small_adapter(seed), f"a:{seed}")
    listed, seals = registry.list(), _seals(store)
    with closing(sqlite3.connect(store.layout.database)) as connection:
        connection.executescript(
            "ALTER TABLE manifests DROP COLUMN seal; DELETE FROM migrations WHERE position = 2; PRAGMA user_version = 1"
        )
    assert registry.list() == listed
    assert _seals(store) == seals
    assert registry.fsck() == []


def _seals(store: Store) -> list[str]:
    with store.database.reading() as connection:
        return [str(row.seal) for row in connection.exec_driver_sql("SELECT seal FROM manifests ORDER BY digest")]
