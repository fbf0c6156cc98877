"""Changes to the catalogue: each is checked, becomes an event, and the event changes the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from sqlalchemy import Connection, delete, exists, insert, select, update
from sqlalchemy.dialects.sqlite import insert as insert_or

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.errors import NotAllowedError, UsageError
from lora_registry.format.canonical import encode
from lora_registry.store import tables
from lora_registry.store.catalogue import Catalogue, Entry
from lora_registry.store.events import Action, Event, timestamp
from lora_registry.store.reference import Reference
from lora_registry.store.seal import seal
from lora_registry.store.state import Held, State, Tag

ACTOR_LENGTH = 200


class CatalogueWriter(Catalogue):
    """The catalogue in a transaction that may change it.

    Attributes:
        actor: who is recorded as having done it.
        recorded: the events of this transaction so far.
    """

    def __init__(self, connection: Connection, actor: str) -> None:
        super().__init__(connection)
        if not 0 < len(actor) <= ACTOR_LENGTH or not actor.isprintable():
            raise UsageError(f"an actor is a name of 1 to {ACTOR_LENGTH} printable characters, not {actor!r}")
        self.actor = actor
        self.recorded: list[Event] = []
        self._head = self.head()

    def add_entry(self, entry: Entry) -> None:
        """Add a manifest's row, unless it is there."""
        row: dict[str, Json] = {
            "digest": str(entry.digest),
            "blob": str(entry.blob),
            "content": str(entry.content),
            "size": entry.size,
            "summary": encode(entry.summary.to_json()).decode(),
        }
        row["seal"] = seal(**row)
        added = self.connection.execute(insert_or(tables.manifests).values(row).on_conflict_do_nothing())
        if added.rowcount:
            self.connection.execute(
                insert(tables.blob_references),
                [
                    {"manifest": str(entry.digest), "blob": str(blob), "size": size}
                    for blob, size in entry.blobs.items()
                ],
            )

    def point(
        self,
        reference: Reference,
        manifest: Digest,
        action: Action,
        *,
        move: bool = False,
        immutable: bool = False,
        expect: Digest | None = None,
    ) -> bool:
        """Let a tag point to a manifest, whose row is there.

        Args:
            reference: repository and tag.
            manifest: where the tag shall point.
            action: ``push`` or ``tag``.
            move: as in :meth:`Catalogue.would_change`, as are the others and the errors.
            immutable: never let the tag move or go again.
            expect: where the tag must point now.

        Returns:
            Whether anything changed.
        """
        changes = self.would_change(reference, manifest, move=move, immutable=immutable, expect=expect)
        if changes and reference.tag is not None:
            current = self.tag(reference.repository, reference.tag)
            before = current.manifest if current else None
            self._record(action, reference.repository, reference.tag, before, manifest, immutable=immutable)
        return changes

    def untag(self, reference: Reference) -> None:
        """Remove a tag; the repository keeps the manifest until garbage collection.

        Raises:
            NotFoundError: there is no such tag.
            NotAllowedError: the tag is immutable.
        """
        current = self.tag(reference.repository, reference.tag) if reference.tag else None
        if current is None or reference.tag is None:
            raise self._missing(reference)
        if current.immutable:
            raise NotAllowedError(f"{reference} is immutable and points to {current.manifest}; it cannot be removed")
        self._record(Action.UNTAG, reference.repository, reference.tag, current.manifest, None)

    def drop(self, repository: str, manifest: Digest, action: Action = Action.DROP) -> None:
        """Take a manifest out of a repository, and its row away where no other repository holds it."""
        self._record(action, repository, None, manifest, None)

    def insert_log(self, events: Sequence[Event]) -> None:
        """Fill an empty catalogue with a log and with the rows that it adds up to, manifests excepted."""
        if not events:
            return
        self.connection.execute(insert(tables.events), [event.to_json() for event in events])
        self._head = events[-1]
        state = State.after(events)
        if state.holdings:
            self.connection.execute(
                insert(tables.holdings),
                [
                    {"repository": repository, "manifest": str(manifest), **_columns(held)}
                    for (repository, manifest), held in state.holdings.items()
                ],
            )
        if state.tags:
            self.connection.execute(
                insert(tables.tags),
                [
                    {"repository": repository, "name": name, **_columns(tag)}
                    for (repository, name), tag in state.tags.items()
                ],
            )

    def _record(
        self,
        action: Action,
        repository: str,
        tag: str | None,
        before: Digest | None,
        after: Digest | None,
        *,
        immutable: bool = False,
    ) -> None:
        sequence = self._head.sequence + 1 if self._head else 1
        event = Event(
            sequence=sequence,
            transaction=self.recorded[0].sequence if self.recorded else sequence,
            time=timestamp(),
            actor=self.actor,
            action=action,
            repository=repository,
            tag=tag,
            before=before,
            after=after,
            immutable=immutable,
            previous=self._head.hash if self._head else None,
        )
        self.connection.execute(insert(tables.events).values(event.to_json()))
        self._apply(event)
        self.recorded.append(event)
        self._head = event

    def _apply(self, event: Event) -> None:
        """Change the rows as ``State.apply`` says; ``fsck`` compares the two."""
        if event.tag is not None and event.after is not None:
            self._hold(event)
            self._set_tag(event)
        elif event.tag is not None:
            self.connection.execute(
                delete(tables.tags).where(tables.tags.c.repository == event.repository, tables.tags.c.name == event.tag)
            )
        else:
            self._take_out(event)
            return
        if event.before is not None and event.before != event.after:
            self._release(event)

    def _hold(self, event: Event) -> None:
        row = {"repository": event.repository, "manifest": str(event.after), "created": event.time, "released": None}
        self.connection.execute(
            insert_or(tables.holdings)
            .values(row)
            .on_conflict_do_update(index_elements=["repository", "manifest"], set_={"released": None})
        )

    def _set_tag(self, event: Event) -> None:
        row = {
            "manifest": str(event.after),
            "generation": event.sequence,
            "immutable": event.immutable,
            "updated": event.time,
        }
        self.connection.execute(
            insert_or(tables.tags)
            .values(repository=event.repository, name=event.tag, **row)
            .on_conflict_do_update(index_elements=["repository", "name"], set_=row)
        )

    def _release(self, event: Event) -> None:
        holdings, tags = tables.holdings, tables.tags
        pointing = exists().where(tags.c.repository == event.repository, tags.c.manifest == str(event.before))
        self.connection.execute(
            update(holdings)
            .where(holdings.c.repository == event.repository, holdings.c.manifest == str(event.before), ~pointing)
            .values(released=event.time)
        )

    def _take_out(self, event: Event) -> None:
        holdings, tags, manifests = tables.holdings, tables.tags, tables.manifests
        manifest = str(event.before)
        here = (tags.c.repository == event.repository, tags.c.manifest == manifest)
        self.connection.execute(delete(tags).where(*here))
        self.connection.execute(
            delete(holdings).where(holdings.c.repository == event.repository, holdings.c.manifest == manifest)
        )
        held = select(holdings.c.manifest).where(holdings.c.manifest == manifest).exists()
        self.connection.execute(delete(manifests).where(manifests.c.digest == manifest, ~held))


def _columns(value: Held | Tag) -> dict[str, object]:
    """The fields of a ``Held`` or a ``Tag``, which are called like the columns."""
    return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Digest) else value
