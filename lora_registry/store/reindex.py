"""Making the catalogue again from what cannot be lost with it: the blobs, and the journal beside them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError, NotFoundError
from lora_registry.format.files import storage_errors, sync_folder
from lora_registry.store.catalogue import Catalogue
from lora_registry.store.entries import read_entry
from lora_registry.store.events import Action, Event, chain_problem, timestamp
from lora_registry.store.journal import JournalContent
from lora_registry.store.state import Holding
from lora_registry.store.store import Store
from lora_registry.store.writer import CatalogueWriter


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a reindex made.

    Attributes:
        manifests: number of manifests.
        tags: number of tags.
        events: number of events.
        lost: repositories and manifests whose blobs are gone; the log says so from now on.
    """

    manifests: int
    tags: int
    events: int
    lost: tuple[Holding, ...]

    def to_json(self) -> dict[str, Json]:
        """The same as a JSON object with the field names."""
        return {
            "manifests": self.manifests,
            "tags": self.tags,
            "events": self.events,
            "lost": [f"{repository}@{digest}" for repository, digest in self.lost],
        }


def rebuild(store: Store, actor: str) -> Rebuilt:
    """Make a new database and swap it for the old one, which is kept in ``backups/``, as is the journal.

    Raises:
        IntegrityError: journal and database contradict each other, or neither can be read. Nothing is changed.
        ConflictError: others used the registry for too long, or a manifest is that of a draft. Nothing is changed.
    """
    with store.lock.exclusive():
        database_events = _database_events(store)
        journal = store.journal.read()
        events = _reconciled(store, database_events, journal)
        with store.new_database() as database:
            with database.writing() as connection:
                writer = CatalogueWriter(connection, actor)
                connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")  # holdings come before manifests
                writer.insert_log(events)
                lost = _add_entries(store, writer)
                log = [*events, *writer.recorded]
                rebuilt = Rebuilt(len(list(writer.entries())), len(writer.tags()), len(log), lost)
            _set_aside(store)
            store.journal.rewrite(log)
            store.install(database)
    return rebuilt


def _database_events(store: Store) -> Sequence[Event] | None:
    """The events of the database as far as they are a chain; None where it cannot be read."""
    try:
        if not store.layout.database.exists():
            return None
        store.database.version()
        with store.database.reading() as connection:
            events = Catalogue(connection).events()
    except IntegrityError:
        return None
    return None if chain_problem(events) else events


def _reconciled(store: Store, ours: Sequence[Event] | None, journal: JournalContent) -> Sequence[Event]:
    """The log to go by."""
    if ours is None:
        if journal.problem is not None:
            raise IntegrityError(
                f"the database cannot be read, nor can the journal {store.journal.path} from {journal.problem}; "
                "to keep what is before, cut the journal off there and reindex again"
            )
        if not journal.events and any(store.blobs.files()):
            raise IntegrityError(
                f"{store.layout.root} has neither a database nor a journal: the blobs are there, their names are lost"
            )
        return journal.events
    theirs = journal.events
    for own, other in zip(ours, theirs, strict=False):
        if own.hash != other.hash:
            raise IntegrityError(
                f"journal and database of {store.layout.root} differ from event {own.sequence} on: "
                "move the one that is wrong away and reindex again"
            )
    ahead = theirs[len(ours) :]
    # One transaction ahead was never committed; more are what an old copy of the database lacks.
    return theirs if len({event.transaction for event in ahead}) > 1 else ours


def _add_entries(store: Store, writer: CatalogueWriter) -> tuple[Holding, ...]:
    """Give every manifest that is held its row; take those out whose blobs are gone."""
    holders: dict[Digest, list[str]] = {}
    for repository, manifest in sorted(writer.holdings()):
        holders.setdefault(manifest, []).append(repository)
    lost: list[Holding] = []
    for manifest, repositories in holders.items():
        try:
            writer.add_entry(read_entry(store.blobs, manifest))
        except (NotFoundError, IntegrityError):
            lost += [(repository, manifest) for repository in repositories]
    for repository, manifest in lost:
        writer.drop(repository, manifest, Action.LOST)
    return tuple(lost)


def _set_aside(store: Store) -> None:
    """Keep the old database and journal. SQLite's files beside it go along: they belong to no other database."""
    stamp = timestamp().replace(":", "")
    backups = store.layout.backups
    with storage_errors(backups):
        backups.mkdir(exist_ok=True)
        if store.journal.path.exists():
            shutil.copyfile(store.journal.path, backups / f"journal-{stamp}-before-reindex.jsonl")
        for path in (store.layout.database, *store.layout.database_side_files):
            if path.exists():
                suffix = path.name.removeprefix(store.layout.database.name)
                path.rename(backups / f"catalogue-{stamp}-before-reindex.sqlite{suffix}")
        sync_folder(backups)
        sync_folder(store.layout.root)
