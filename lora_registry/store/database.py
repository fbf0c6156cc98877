"""The catalogue's database: everything that is particular to SQLite.

Each transaction has its own connection, which is closed after it, so that a database that was swapped for
another (``reindex``) is never written to by somebody who still has the old one open.

Sources: sqlite.org/lang_transaction.html for BEGIN IMMEDIATE, without which a transaction that reads and
then writes fails at once under contention; sqlite.org/wal.html#walresetbug for the versions; and
sqlite.org/pragma.html#pragma_synchronous for EXTRA, which syncs the folder when a commit deletes the rollback
journal: with FULL a power cut could take back what was reported as done.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from lora_registry.errors import ConflictError, IntegrityError, LoregError, MachineError, NotAllowedError
from lora_registry.format.files import storage_errors, sync_folder
from lora_registry.store.migrations import MIGRATIONS, Migration, check_not_newer, migrate

APPLICATION_ID = 0x4C6F5267  # "LoRg", so that file(1) and we can tell what the database is for

BUSY_TIMEOUT = 30_000  # milliseconds to wait for another writer

_LOCAL = frozenset({"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs"})
"""File systems with working shared memory, which a write-ahead log needs. Others, known or not, do without."""


def wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Whether this version of SQLite has the fix of the WAL-reset bug: 3.51.3, 3.50.7 or 3.44.6 on."""
    return version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51, 0) or (3, 44, 6) <= version < (3, 45, 0)


def file_system(path: Path, mounts: str = "/proc/self/mounts") -> str | None:
    """Type of the file system that ``path`` is on, such as ``ext4``; None where the kernel does not tell."""
    target = os.path.realpath(path)
    best, found = -1, None
    try:
        lines = Path(mounts).read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    for line in lines:
        _, mount, kind, *_ = line.split(" ")
        mount = mount.replace("\\040", " ").rstrip("/")
        # Later lines hide earlier ones that are mounted in the same place.
        if (target == mount or target.startswith(mount + "/")) and len(mount) >= best:
            best, found = len(mount), kind
    return found


def journal_mode(folder: Path, version: tuple[int, int, int] | None = None) -> str:
    """The journal mode for a database in ``folder``: WAL where that is safe, and DELETE."""
    safe = wal_is_safe(sqlite3.sqlite_version_info[:3] if version is None else version)
    return "wal" if safe and file_system(folder) in _LOCAL else "delete"


class Database:
    """An SQLite database that holds the catalogue.

    Attributes:
        path: the file.
        steps: the migrations that lead to the schema that this code knows.
    """

    def __init__(self, path: Path, steps: Sequence[Migration] = MIGRATIONS) -> None:
        self.path = path
        self.steps = steps
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)
        event.listen(self._engine, "begin", _begin)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and can change nothing.

        Raises:
            ConflictError: a writer kept the database for longer than the timeout.
            IntegrityError: the database is damaged, or another program's.
        """
        with self._transaction(write=False) as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that holds the write lock from its first moment and commits when the block ends well.

        Raises:
            ConflictError: another writer kept the database for longer than the timeout.
            MachineError: the disk is full, or failed; nothing was changed.
            NotAllowedError: the database may not be written.
            IntegrityError: the database is damaged, or another program's.
        """
        with self._transaction(write=True) as connection:
            yield connection

    @contextmanager
    def _transaction(self, *, write: bool) -> Iterator[Connection]:
        with self._errors(), self._engine.execution_options(loreg_write=write).begin() as connection:
            yield connection

    def version(self) -> int:
        """How many migrations were applied.

        Raises:
            IntegrityError: the database is damaged, or another program's.
            ConflictError: a newer loreg migrated it.
        """
        with self._errors(), closing(self._connect()) as connection:
            application = connection.execute("PRAGMA application_id").fetchone()[0]
            version = int(connection.execute("PRAGMA user_version").fetchone()[0])
            if application != APPLICATION_ID:
                raise IntegrityError(f"{self.path} is a database, but not one of loreg")
            if version != len(self.steps):  # other code made it, or the number is damaged
                applied = connection.execute("SELECT count(*) FROM migrations").fetchone()[0]
                if version != applied:
                    raise _damaged(self.path, f"schema version {version} after {applied} migrations")
        check_not_newer(version, self.steps)
        return version

    def create(self) -> None:
        """Make the file, with the newest schema and no rows. The file must not exist."""
        with self._errors():
            with closing(self._open("rwc")) as connection:
                connection.execute(f"PRAGMA journal_mode = {journal_mode(self.path.parent)}")
                connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self.upgrade()

    def upgrade(self) -> None:
        """Apply the migrations that are missing; nothing happens where none is."""
        with self.writing() as connection:
            migrate(connection, self.steps)

    def back_up(self, copy: Path) -> None:
        """Write a copy of the committed state to ``copy``, which must not exist, and sync it."""
        with self._errors(), closing(self._connect()) as connection:
            connection.execute("VACUUM INTO ?", (str(copy),))
        with storage_errors(copy):
            descriptor = os.open(copy, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            sync_folder(copy.parent)

    def problems(self) -> list[str]:
        """What SQLite itself finds wrong: damaged pages, and rows that point to rows that are not there."""
        with self.reading() as connection:
            found = list(connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars())
            dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        return [text for text in found if text != "ok"] + [
            f"row {row[1]} of {row[0]} points to a row of {row[2]} that is not there" for row in dangling
        ]

    def _open(self, mode: str) -> sqlite3.Connection:
        """Connect without making a file unless ``mode`` says so: a missing catalogue must not look empty."""
        connection = sqlite3.connect(
            f"file:{quote(str(self.path))}?mode={mode}", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT / 1000
        )
        try:
            for pragma in (
                f"busy_timeout = {BUSY_TIMEOUT}",  # first, since the others may have to wait
                "foreign_keys = ON",
                "synchronous = EXTRA",
                "trusted_schema = OFF",
                "cell_size_check = ON",
            ):
                connection.execute(f"PRAGMA {pragma}")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = self._open("rw")
        try:
            # A database that a fixed SQLite made with a write-ahead log is put back before an unfixed one uses it.
            mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
            if mode == "wal" and journal_mode(self.path.parent) != "wal":
                connection.execute("PRAGMA journal_mode = delete")
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what SQLite says into loreg's errors."""
        try:
            yield
        except DBAPIError as error:
            if not isinstance(error.orig, sqlite3.Error):
                raise
            self._raise(error.orig)
        except sqlite3.Error as error:
            self._raise(error)
        except UnicodeDecodeError as error:  # sqlite3 cannot even tell what is wrong with a damaged schema
            raise _damaged(self.path, error) from error

    def _raise(self, error: sqlite3.Error) -> NoReturn:
        name = getattr(error, "sqlite_errorname", "")
        for prefix, make in _KINDS.items():
            if name.startswith(prefix):
                raise make(self.path, error) from error
        # The first is said by Python, so without a name; the others are what a damaged schema leads to.
        if str(error).startswith(_SAID_OF_DAMAGE):
            raise _damaged(self.path, error) from error
        raise error


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options()["loreg_write"]
    connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if write else 'ON'}")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _busy(path: Path, _error: sqlite3.Error) -> LoregError:
    return ConflictError(f"the catalogue {path} was locked for {BUSY_TIMEOUT // 1000} seconds by another process")


def _full(path: Path, _error: sqlite3.Error) -> LoregError:
    return MachineError(f"the disk is full: {path} was not changed")


def _failed(path: Path, error: sqlite3.Error) -> LoregError:
    return MachineError(f"the disk failed: {path} was not changed: {error}")


def _refused(path: Path, error: sqlite3.Error) -> LoregError:
    return NotAllowedError(f"not allowed: {path}: {error}")


def _damaged(path: Path, error: Exception | str) -> LoregError:
    return IntegrityError(f"the catalogue {path} is damaged ({error}); rebuild it with `loreg reindex`")


_SAID_OF_DAMAGE = ("Could not decode to UTF-8", "no such table", "no such column", "unsupported file format")

_KINDS: dict[str, Callable[[Path, sqlite3.Error], LoregError]] = {
    "SQLITE_BUSY": _busy,
    "SQLITE_LOCKED": _busy,
    "SQLITE_FULL": _full,
    "SQLITE_IOERR": _failed,
    "SQLITE_READONLY": _refused,
    "SQLITE_CANTOPEN": _refused,
    "SQLITE_PERM": _refused,
    "SQLITE_CORRUPT": _damaged,
    "SQLITE_NOTADB": _damaged,
}
"""Begin of the name of an SQLite error to what it means to the user (sqlite.org/rescode.html)."""
