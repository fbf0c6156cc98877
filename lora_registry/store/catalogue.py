"""Questions to the catalogue's rows, and the rows themselves as values. Nothing here changes anything."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Connection, Row, select

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError, LoregError, NotAllowedError, NotFoundError
from lora_registry.format.canonical import decode
from lora_registry.store import tables
from lora_registry.store.events import Event, chain_problem
from lora_registry.store.record import Record, Summary
from lora_registry.store.reference import Reference
from lora_registry.store.seal import seal
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
    """The catalogue as one transaction sees it; a row that says nonsense is an IntegrityError.

    SQLite has no checksums, so that a damaged page can read as other rows, or as none. What is told to users is
    therefore compared with what is sealed: tags and holdings with the event log, the facts of a manifest with the
    seal of their row.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def resolve(self, reference: Reference) -> Record:
        """The adapter behind a reference; a digest decides, and the tag beside it is not looked up.

        Raises:
            NotFoundError: there is none; says what there is.
            IntegrityError: the rows are not what the log adds up to.
        """
        tag = None
        manifest = reference.digest
        if manifest is None and (tag := self.tag(reference.repository, reference.tag or "")):
            self._check_tag(reference.repository, reference.tag or "", tag)
            manifest = tag.manifest
        manifests, holdings = tables.manifests, tables.holdings
        query = (
            select(manifests, holdings.c.created)
            .join(holdings, holdings.c.manifest == manifests.c.digest)
            .where(holdings.c.repository == reference.repository, manifests.c.digest == str(manifest))
        )
        row = self.connection.execute(query).one_or_none()
        if row is None:
            raise self._missing(reference)
        return _record(reference, row, row.created, tag)

    def check(self) -> State:
        """Holdings and tags, compared with what the log adds up to; reads all of the log.

        Raises:
            IntegrityError: they are something else, or the log is no chain.
        """
        events = self.events()
        if problem := chain_problem(events):
            raise _damaged(problem)
        state = State.after(events)
        if state != self.state():
            raise _damaged("holdings and tags are not what the event log adds up to")
        return state

    def _check_tag(self, repository: str, name: str, tag: Tag) -> None:
        """Compare one tag with the event that set it."""
        set_by = select(tables.events).where(tables.events.c.sequence == tag.generation)
        events = [_event(row) for row in self.connection.execute(set_by)]
        if State.after(events).tags != {(repository, name): tag}:
            raise _damaged(f"the tag {repository}:{name} is not what its event made it")

    def _missing(self, reference: Reference) -> LoregError:
        """That something is not there, unless the log says that it is."""
        state, repository, digest = self.check(), reference.repository, reference.digest
        names = sorted(name for key, name in state.tags if key == repository)
        if reference.tag in names if digest is None else (repository, digest) in state.holdings:
            return _damaged(f"{reference} cannot be found, and is there")
        return NotFoundError(self._nothing(reference, names))

    @staticmethod
    def _nothing(reference: Reference, names: Sequence[str]) -> str:
        if reference.digest is not None:
            return f"no {reference.digest} in the repository {reference.repository!r}"
        if not names:
            return f"no repository {reference.repository!r} with tags in this registry"
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"no tag {reference.tag!r} in {reference.repository!r}; it has {', '.join(names[:_SHOWN])}{more}"

    def list(self, pattern: str | None = None) -> Iterator[Record]:
        """Every tag, by repository and name; those whose repository matches the shell pattern.

        Raises:
            IntegrityError: the rows are not what the log adds up to.
        """
        state = self.check()
        # Not a join: SQLite would look rows up in an index, where a damaged one finds fewer.
        rows = {row.digest: row for row in self.connection.execute(select(tables.manifests))}
        for (repository, name), tag in sorted(state.tags.items(), key=lambda item: item[0]):
            if pattern is None or fnmatch.fnmatchcase(repository, pattern):
                row = rows.get(str(tag.manifest))
                if row is None:
                    raise _damaged(f"the row of the manifest {tag.manifest} is missing")
                held = state.holdings[repository, tag.manifest]
                yield _record(Reference(repository, name), row, held.created, tag)

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

    def unsealed(self) -> Sequence[str]:
        """The digests of the manifests whose row is not what its seal says."""
        return [row.digest for row in self.connection.execute(select(tables.manifests)) if not _is_sealed(row)]

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


def _record(reference: Reference, row: Row[Any], created: str, tag: Tag | None) -> Record:
    if not _is_sealed(row):
        raise _damaged(f"the row of the manifest {row.digest} was changed")
    return Record(
        reference=reference,
        digest=_digest(row.digest),
        blob=_digest(row.blob),
        content=_digest(row.content),
        size=row.size,
        created=created,
        summary=_summary(row),
        generation=tag.generation if tag else None,
        immutable=tag.immutable if tag else False,
    )


def _is_sealed(row: Row[Any]) -> bool:
    return bool(seal(row.digest, row.blob, row.content, row.size, row.summary) == row.seal)


def _summary(row: Row[Any]) -> Summary:
    try:
        return Summary.from_json(cast("dict[str, Json]", decode(row.summary)))
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(f"the row of the manifest {row.digest}: {error}") from None


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except (ValueError, TypeError) as error:  # a damaged page gives numbers for texts
        raise _damaged(str(error)) from None


def _event(row: Row[Any]) -> Event:
    try:
        return Event.from_json(dict(row._mapping))  # noqa: SLF001 - as above
    except ValueError as error:
        raise _damaged(f"the event log: {error}") from None


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(f"the catalogue is damaged: {what}; see `loreg fsck`, and mend it with `loreg reindex`")
