"""Garbage collection: manifests that no tag has pointed to for a while, then the blobs that nothing needs.

A push holds the registry's lock shared from its first blob to its commit, and the sweep holds it exclusively,
so that no blob of a push under way is ever taken. The grace period is for people, who change their minds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError
from lora_registry.format.files import storage_errors
from lora_registry.store.catalogue import Catalogue
from lora_registry.store.events import timestamp
from lora_registry.store.state import Holding
from lora_registry.store.store import Store


@dataclass(frozen=True, slots=True)
class Swept:
    """What a collection took away, or would.

    Attributes:
        manifests: the repositories and the manifests that they no longer hold.
        blobs: the blobs.
        leftovers: number of temporary files that killed processes left.
        bytes: how many bytes the blobs had.
    """

    manifests: tuple[Holding, ...]
    blobs: tuple[Digest, ...]
    leftovers: int
    bytes: int

    def to_json(self) -> dict[str, Json]:
        """The same as a JSON object with the field names."""
        return {
            "manifests": [f"{repository}@{digest}" for repository, digest in self.manifests],
            "blobs": [str(digest) for digest in self.blobs],
            "leftovers": self.leftovers,
            "bytes": self.bytes,
        }


def collect(store: Store, actor: str, *, grace: float, dry_run: bool = False) -> Swept:
    """Take away what has had no name for ``grace`` seconds; errors as in :meth:`Store.writing`.

    A catalogue that is damaged is an IntegrityError, and nothing is deleted.

    Manifests go first, in a transaction of their own: a crash before the blobs follow leaves orphans, never
    a row whose blob is gone.
    """
    now = time.time()
    if dry_run:
        with store.reading() as catalogue:
            dropped = _released(catalogue, now - grace)
            return _swept(store, dropped, _orphans(store, catalogue, now - grace, dropped), now - grace)
    store.prepare()
    with store.lock.exclusive():
        _require_sound(store)
        with store.transaction(actor) as writer:
            dropped = _released(writer, now - grace)
            for repository, manifest in dropped:
                writer.drop(repository, manifest)
        with store.transaction(actor) as writer:
            swept = _swept(store, dropped, _orphans(store, writer, now - grace, ()), now - grace)
            for digest in swept.blobs:
                store.blobs.delete(digest)
        for path in leftovers(store, now - grace):
            with storage_errors(path):
                path.unlink()
    return swept


def _require_sound(store: Store) -> None:
    """Refuse to delete anything by a catalogue that is damaged: what it does not name can be needed all the same.

    Raises:
        IntegrityError: SQLite finds it damaged, or it is not what the log adds up to.
    """
    if problems := store.database.problems():
        raise IntegrityError(
            f"the catalogue {store.layout.database} is damaged ({problems[0]}); rebuild it with `loreg reindex`"
        )
    with store.database.reading() as connection:
        Catalogue(connection).check()


def leftovers(store: Store, before: float) -> list[Path]:
    """Temporary files last written before that time, in seconds since 1970; none where ``tmp/`` is a link.

    Behind a link may lie anybody's files.
    """
    linked = store.layout.temporary.is_symlink()
    candidates = [*(() if linked else store.layout.temporary.glob("*")), *store.layout.root.glob(".*.tmp")]
    return [path for path in sorted(candidates) if path.is_file() and path.stat().st_mtime <= before]


def _released(catalogue: Catalogue, before: float) -> tuple[Holding, ...]:
    """Manifests that a repository holds without a tag since before that time."""
    limit = timestamp(datetime.fromtimestamp(before, UTC))
    return tuple(
        sorted(
            key for key, held in catalogue.holdings().items() if held.released is not None and held.released <= limit
        )
    )


def _orphans(
    store: Store, catalogue: Catalogue, before: float, dropped: tuple[Holding, ...]
) -> Iterator[tuple[Digest, int]]:
    """Blobs that no manifest needs once ``dropped`` are gone, untouched since before that time, with their sizes."""
    kept = {manifest for _, manifest in catalogue.holdings().keys() - set(dropped)}
    needed = {blob for entry in catalogue.entries() if entry.digest in kept for blob in entry.blobs}
    for digest in store.blobs:
        state = store.blobs.path(digest).stat()
        if digest not in needed and state.st_mtime <= before:
            yield digest, state.st_size


def _swept(store: Store, dropped: tuple[Holding, ...], orphans: Iterator[tuple[Digest, int]], before: float) -> Swept:
    found = list(orphans)
    return Swept(
        dropped,
        tuple(digest for digest, _ in found),
        len(leftovers(store, before)),
        sum(size for _, size in found),
    )
