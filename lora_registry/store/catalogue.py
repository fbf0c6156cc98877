"""Questions to the catalogue's rows, and the rows themselves as values. Nothing here changes anything."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Row, select

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError, NotAllowedError, NotFoundError
from lora_registry.format.canonical import decode
from lora_registry.store import tables
from lora_registry.store.events import Event
from lora_registry.store.record import Record, Summary
from lora_registry.store.reference import Reference
from lora_registry.store.state import Held, State, Tag

_SHOWN = 8  # tags that an error lists


@dataclass(frozen=True, slots=True)
class Entry:
    """The row of one manifest, and the blobs that it needs.

    Attributes:
        digest: digest of the manifest.
        blob: digest of the native file.
        content: content digest of the adapter.
        size: bytes of the native file.
        summary: what lists show.
        blobs: digest to size of every blob that must be kept for it, itself included.
    """

    digest: Digest
    blob: Digest
    content: Digest
    size: int
    summary: Summary
    blobs: dict[Digest, int]


class Catalogue:
    """The catalogue as one transaction sees it; a row that says nonsense is an IntegrityError."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def resolve(self, reference: Reference) -> Record:
        """The adapter behind a reference; a digest decides, and the tag beside it is not looked up.

        Raises:
            NotFoundError: there is none; says what there is.
        """
        manifests, holdings, tags = tables.manifests, tables.holdings, tables.tags
        if reference.digest is not None:
            query = (
                select(manifests, holdings.c.created)
                .join(holdings, holdings.c.manifest == manifests.c.digest)
                .where(holdings.c.repository == reference.repository, manifests.c.digest == str(reference.digest))
            )
        else:
            query = (
                select(manifests, holdings.c.created, tags.c.generation, tags.c.immutable)
                .select_from(_TAGGED)
                .where(tags.c.repository == reference.repository, tags.c.name == reference.tag)
            )
        row = self.connection.execute(query).one_or_none()
        if row is None:
            raise NotFoundError(self._nothing(reference))
        return _record(reference, row)

    def _nothing(self, reference: Reference) -> str:
        names = sorted(key[1] for key in self.tags(reference.repository))
        if reference.digest is not None:
            return f"no {reference.digest} in the repository {reference.repository!r}"
        if not names:
            return f"no repository {reference.repository!r} with tags in this registry"
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"no tag {reference.tag!r} in {reference.repository!r}; it has {', '.join(names[:_SHOWN])}{more}"

    def list(self, pattern: str | None = None) -> Iterator[Record]:
        """Every tag, by repository and name; those whose repository matches the shell pattern."""
        manifests, holdings, tags = tables.manifests, tables.holdings, tables.tags
        query = (
            select(manifests, holdings.c.created, tags.c.generation, tags.c.immutable, tags.c.repository, tags.c.name)
            .select_from(_TAGGED)
            .order_by(tags.c.repository, tags.c.name)
        )
        for row in self.connection.execute(query):
            if pattern is None or fnmatch.fnmatchcase(row.repository, pattern):
                yield _record(Reference(row.repository, row.name), row)

    def tag(self, repository: str, name: str) -> Tag | None:
        """Where a tag points; None where there is no such tag."""
        return self.tags(repository, name).get((repository, name))

    def would_change(
        self,
        reference: Reference,
        manifest: Digest,
        *,
        move: bool = False,
        immutable: bool = False,
        expect: Digest | None = None,
    ) -> bool:
        """Whether there is anything to do to let a tag point to ``manifest``, and whether that is allowed.

        Args:
            reference: repository and tag.
            manifest: where the tag shall point.
            move: whether a tag that points elsewhere may move.
            immutable: whether the tag shall be immutable from then on.
            expect: where the tag must point now; it may move from there.

        Raises:
            ConflictError: the tag points elsewhere and may not move, or not to ``expect``.
            NotAllowedError: the tag is immutable and points elsewhere.
        """
        current = self.tag(reference.repository, reference.tag or "")
        before = current.manifest if current else None
        if expect is not None and before != expect:
            raise ConflictError(f"{reference} points to {before or 'nothing'}, not to the expected {expect}")
        if current is None:
            return True
        if before == manifest:
            return immutable and not current.immutable
        if current.immutable:
            raise NotAllowedError(f"{reference} is immutable and points to {before}, not to {manifest}")
        if not move and expect is None:
            raise ConflictError(f"{reference} points to {before}, not to {manifest}; only --move moves it")
        return True

    def tags(self, repository: str | None = None, name: str | None = None) -> dict[tuple[str, str], Tag]:
        """All tags, or those of one repository, or the one of a name, by repository and name."""
        query = select(tables.tags)
        if repository is not None:
            query = query.where(tables.tags.c.repository == repository)
        if name is not None:
            query = query.where(tables.tags.c.name == name)
        return {
            (row.repository, row.name): Tag(_digest(row.manifest), row.generation, row.immutable, row.updated)
            for row in self.connection.execute(query)
        }

    def holdings(self) -> dict[tuple[str, Digest], Held]:
        """Which repository holds which manifest."""
        return {
            (row.repository, _digest(row.manifest)): Held(row.created, row.released)
            for row in self.connection.execute(select(tables.holdings))
        }

    def state(self) -> State:
        """Holdings and tags, to be compared with what the log adds up to."""
        return State(self.holdings(), self.tags())

    def entries(self) -> Iterator[Entry]:
        """Every manifest's row, with its blobs."""
        blobs: dict[str, dict[Digest, int]] = {}
        for row in self.connection.execute(select(tables.blob_references)):
            blobs.setdefault(row.manifest, {})[_digest(row.blob)] = row.size
        for row in self.connection.execute(select(tables.manifests).order_by(tables.manifests.c.digest)):
            yield Entry(
                _digest(row.digest),
                _digest(row.blob),
                _digest(row.content),
                row.size,
                _summary(row),
                blobs.get(row.digest, {}),
            )

    def events(
        self, repository: str | None = None, tag: str | None = None, *, limit: int | None = None, newest: bool = False
    ) -> Sequence[Event]:
        """The log, or what it says about one repository or tag.

        Raises:
            IntegrityError: an event was changed: its hash is not that of its fields.
        """
        events = tables.events
        query = select(events).order_by(events.c.sequence.desc() if newest else events.c.sequence).limit(limit)
        if repository is not None:
            query = query.where(events.c.repository == repository)
        if tag is not None:
            query = query.where(events.c.tag == tag)
        return [_event(row) for row in self.connection.execute(query)]

    def head(self) -> Event | None:
        """The last event; None in an empty log."""
        return next(iter(self.events(limit=1, newest=True)), None)


_TAGGED = tables.tags.join(
    tables.holdings,
    (tables.holdings.c.repository == tables.tags.c.repository) & (tables.holdings.c.manifest == tables.tags.c.manifest),
).join(tables.manifests, tables.manifests.c.digest == tables.tags.c.manifest)


def _record(reference: Reference, row: Row[Any]) -> Record:
    fields = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for the columns by name
    return Record(
        reference=reference,
        digest=_digest(row.digest),
        blob=_digest(row.blob),
        content=_digest(row.content),
        size=row.size,
        created=row.created,
        summary=_summary(row),
        generation=fields.get("generation"),
        immutable=bool(fields.get("immutable", False)),
    )


def _summary(row: Row[Any]) -> Summary:
    try:
        return Summary.from_json(cast("dict[str, Json]", decode(row.summary)))
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the catalogue has a damaged row for the manifest {row.digest}: {error}") from None


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise IntegrityError(f"the catalogue has a damaged row: {error}") from None


def _event(row: Row[Any]) -> Event:
    try:
        return Event.from_json(dict(row._mapping))  # noqa: SLF001 - as above
    except ValueError as error:
        raise IntegrityError(f"the event log of the catalogue is damaged: {error}") from None
