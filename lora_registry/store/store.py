"""A registry's folder opened: blobs, database, journal and lock, and the transactions that join them."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from lora_registry.errors import IntegrityError
from lora_registry.format.files import storage_errors, sync_folder
from lora_registry.store.blobs import BlobStore
from lora_registry.store.catalogue import Catalogue
from lora_registry.store.database import Database
from lora_registry.store.events import timestamp
from lora_registry.store.journal import Journal
from lora_registry.store.layout import Layout
from lora_registry.store.lock import StoreLock
from lora_registry.store.migrations import MIGRATIONS, Migration
from lora_registry.store.writer import CatalogueWriter


class Store:
    """What a registry keeps.

    Attributes:
        layout: where things lie.
        blobs: the content-addressed files.
        database: the catalogue.
        journal: the event log as a file.
        lock: shared by everybody who uses the database, exclusive for those who sweep or swap.
    """

    def __init__(self, root: Path, steps: Sequence[Migration] = MIGRATIONS) -> None:
        self.layout = Layout(root)
        self.blobs = BlobStore(self.layout.blobs, self.layout.temporary)
        self.database = Database(self.layout.database, steps)
        self.journal = Journal(self.layout.journal)
        self.lock = StoreLock(self.layout.lock, self.layout.marker)

    def prepare(self) -> None:
        """Make what is missing and bring the database up to date; safe to call often, and by several at once.

        Raises:
            IntegrityError: the database is lost, or damaged.
            ConflictError: a newer loreg made it.
            NotAllowedError: the folder holds something else, or may not be written.
        """
        self.layout.create()
        if self._is_current():
            return
        with self.lock.exclusive():
            if self._is_current():
                return
            if self.layout.database.exists():
                self.back_up(f"before-migration-from-{self.database.version()}")
                self.database.upgrade()
            else:
                with self.new_database() as database:
                    self.install(database)

    def _is_current(self) -> bool:
        if self.layout.database.exists():
            return self.database.version() == len(self.database.steps)
        if not self.journal.is_empty() or any(self.blobs.files()):
            raise IntegrityError(f"the catalogue {self.layout.database} is lost; rebuild it with `loreg reindex`")
        return False

    def back_up(self, label: str) -> Path:
        """Copy the database into ``backups/``. The caller holds the exclusive lock."""
        with storage_errors(self.layout.backups):
            self.layout.backups.mkdir(exist_ok=True)
        copy = self.layout.backups / f"catalogue-{timestamp().replace(':', '')}-{label}.sqlite"
        self.database.back_up(copy)
        return copy

    @contextmanager
    def new_database(self) -> Iterator[Database]:
        """An empty database under a temporary name, gone when the block ends unless it was installed."""
        with storage_errors(self.layout.temporary):
            self.layout.temporary.mkdir(exist_ok=True)
        database = Database(self.layout.temporary / f"catalogue-{secrets.token_hex(8)}.sqlite", self.database.steps)
        try:
            database.create()
            yield database
        finally:
            for suffix in ("", "-journal", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    database.path.with_name(database.path.name + suffix).unlink()

    def install(self, database: Database) -> None:
        """Give a database that nobody has open the name of the catalogue. The caller holds the exclusive lock."""
        with storage_errors(self.layout.database):
            database.path.replace(self.layout.database)
            sync_folder(self.layout.root)

    @contextmanager
    def reading(self) -> Iterator[Catalogue]:
        """The catalogue as it is now; errors as in :meth:`prepare` and :meth:`Database.reading`."""
        self.prepare()
        with self.lock.shared(), self.database.reading() as connection:
            yield Catalogue(connection)

    @contextmanager
    def writing(self, actor: str) -> Iterator[CatalogueWriter]:
        """A transaction: all of its changes and their events, or nothing.

        Errors as in :meth:`prepare` and :meth:`Database.writing`, and IntegrityError where the journal and the
        database tell different stories.
        """
        self.prepare()
        with self.lock.shared(), self.transaction(actor) as writer:
            yield writer

    @contextmanager
    def transaction(self, actor: str) -> Iterator[CatalogueWriter]:
        """:meth:`writing` for callers who hold the lock already."""
        with self.database.writing() as connection:
            writer = CatalogueWriter(connection, actor)
            self.journal.reconcile(writer.head())
            yield writer
            # Last, and before the commit: the journal may be ahead of the database, and never behind it.
            self.journal.append(writer.recorded)
