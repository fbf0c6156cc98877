"""How the catalogue's schema came to be, step by step. A step that has been released is never edited.

All outstanding steps run in one transaction with the write lock held, so that several processes may try at
once and a step that fails leaves the database as it was. ``PRAGMA user_version`` counts the steps that were
applied, and the table ``migrations`` names them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from lora_registry.errors import ConflictError, IntegrityError
from lora_registry.store.events import timestamp
from lora_registry.store.seal import seal


@dataclass(frozen=True, slots=True)
class Migration:
    """One step.

    Attributes:
        name: what it does, once and for all; recorded in the database.
        apply: does it, inside the transaction of the caller.
    """

    name: str
    apply: Callable[[Connection], None]


def _create_catalogue(connection: Connection) -> None:
    for statement in (
        """CREATE TABLE manifests (
            digest TEXT NOT NULL PRIMARY KEY,
            blob TEXT NOT NULL,
            content TEXT NOT NULL,
            size INTEGER NOT NULL,
            summary TEXT NOT NULL
        )""",
        """CREATE TABLE blob_references (
            manifest TEXT NOT NULL REFERENCES manifests (digest) ON DELETE CASCADE,
            blob TEXT NOT NULL,
            size INTEGER NOT NULL,
            PRIMARY KEY (manifest, blob)
        )""",
        """CREATE TABLE holdings (
            repository TEXT NOT NULL,
            manifest TEXT NOT NULL REFERENCES manifests (digest),
            created TEXT NOT NULL,
            released TEXT,
            PRIMARY KEY (repository, manifest)
        )""",
        "CREATE INDEX holdings_by_manifest ON holdings (manifest)",
        """CREATE TABLE tags (
            repository TEXT NOT NULL,
            name TEXT NOT NULL,
            manifest TEXT NOT NULL,
            generation INTEGER NOT NULL,
            immutable BOOLEAN NOT NULL,
            updated TEXT NOT NULL,
            PRIMARY KEY (repository, name),
            FOREIGN KEY (repository, manifest) REFERENCES holdings (repository, manifest)
        )""",
        "CREATE INDEX tags_by_manifest ON tags (repository, manifest)",
        """CREATE TABLE events (
            sequence INTEGER NOT NULL PRIMARY KEY,
            "transaction" INTEGER NOT NULL,
            time TEXT NOT NULL,
            actor TEXT NOT NULL,
            action TEXT NOT NULL,
            repository TEXT NOT NULL,
            tag TEXT,
            before TEXT,
            after TEXT,
            immutable BOOLEAN NOT NULL,
            previous TEXT,
            hash TEXT NOT NULL
        )""",
        "CREATE INDEX events_by_repository ON events (repository, tag)",
    ):
        connection.exec_driver_sql(statement)


def _seal_manifests(connection: Connection) -> None:
    connection.exec_driver_sql("ALTER TABLE manifests ADD COLUMN seal TEXT NOT NULL DEFAULT ''")
    for row in connection.exec_driver_sql("SELECT digest, blob, content, size, summary FROM manifests").all():
        connection.exec_driver_sql("UPDATE manifests SET seal = ? WHERE digest = ?", (seal(*row), row.digest))


MIGRATIONS: tuple[Migration, ...] = (
    Migration("0001-create-catalogue", _create_catalogue),
    Migration("0002-seal-manifests", _seal_manifests),
)
"""Every step, oldest first."""


def migrate(connection: Connection, steps: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply the steps that the database lacks. The caller holds its write lock and commits.

    Raises:
        ConflictError: a newer loreg migrated the database further than this one knows.
        IntegrityError: the database was migrated by other steps than these.
    """
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS migrations"
        " (position INTEGER PRIMARY KEY, name TEXT NOT NULL, applied TEXT NOT NULL)"
    )
    applied = list(connection.exec_driver_sql("SELECT name FROM migrations ORDER BY position").scalars())
    check_not_newer(len(applied), steps)
    for name, step in zip(applied, steps, strict=False):
        if name != step.name:
            raise IntegrityError(f"the catalogue was made by the migration {name!r} where loreg has {step.name!r}")
    for position, step in enumerate(steps[len(applied) :], len(applied) + 1):
        step.apply(connection)
        connection.exec_driver_sql("INSERT INTO migrations VALUES (?, ?, ?)", (position, step.name, timestamp()))
    connection.exec_driver_sql(f"PRAGMA user_version = {len(steps)}")


def check_not_newer(version: int, steps: Sequence[Migration] = MIGRATIONS) -> None:
    """Refuse a database that knows more steps than this code.

    Raises:
        ConflictError: it does.
    """
    if version > len(steps):
        raise ConflictError(
            f"the catalogue has schema version {version}, written by a newer loreg; this one knows {len(steps)}: "
            "upgrade loreg"
        )
