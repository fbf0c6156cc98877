"""Checking a registry: every blob, every row and every event, against each other."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError, LoregError, NotFoundError
from lora_registry.findings import Finding, Severity
from lora_registry.format.files import storage_errors
from lora_registry.store.catalogue import Catalogue, Entry
from lora_registry.store.entries import read_entry
from lora_registry.store.events import Event, chain_problem
from lora_registry.store.gc import leftovers
from lora_registry.store.journal import JournalContent
from lora_registry.store.state import State
from lora_registry.store.store import Store

RULES: Mapping[str, str] = {
    "S-001": "a blob's bytes have the digest in its name",
    "S-002": "a blob has the size that its manifest states",
    "S-003": "every blob that a manifest needs is there",
    "S-004": "every blob is needed by a manifest",
    "S-005": "the folder holds only what loreg put there",
    "S-006": "no temporary files are left over",
    "S-007": "blobs are read-only",
    "S-008": "a manifest's row says what its blobs say",
    "S-009": "the database is there, and SQLite finds it sound",
    "S-010": "holdings and tags are what the event log adds up to",
    "S-011": "the events of the database are a whole chain",
    "S-012": "the lines of the journal are a whole chain",
    "S-013": "the journal has every event of the database",
    "S-014": "the database has every event of the journal; an error where more than one transaction is missing",
    "S-015": "a manifest is what follows from its native file",
}
"""Rule id to the rule in one line (spec/registry.md section 9)."""


@dataclass(slots=True)
class _Rows:
    """The database's half of the story, read in one transaction; ``events`` is None unless they are a chain."""

    entries: list[Entry] = field(default_factory=list)
    events: Sequence[Event] | None = None
    findings: list[Finding] = field(default_factory=list)
    readable: bool = False


def check(store: Store) -> list[Finding]:
    """Everything that is wrong with the registry. Reads every blob; pushes may go on meanwhile.

    What others add while this runs may be noted as not needed yet; nothing else of theirs is misread.
    """
    with store.lock.shared():
        rows = _read_rows(store)
        journal = store.journal.read()
        return [
            *rows.findings,
            *_check_journal(rows, journal, _committed(store, rows)),
            *_check_blobs(store, rows),
            *_check_entries(store, rows.entries),
            *_check_folder(store),
        ]


def _read_rows(store: Store) -> _Rows:
    rows = _Rows()
    if not store.layout.database.exists():
        rows.findings.append(Finding("S-009", store.layout.database.name, "the database is not there"))
        return rows
    try:
        store.database.version()
        problems = store.database.problems()
        rows.findings += [Finding("S-009", store.layout.database.name, text) for text in problems]
        with store.database.reading() as connection:
            catalogue = Catalogue(connection)
            rows.entries = list(catalogue.entries())
            rows.readable = True
            rows.findings += [
                Finding("S-008", f"manifests/{digest}", "the row is not what its seal says; `loreg reindex` mends it")
                for digest in catalogue.unsealed()
            ]
            rows.findings += _check_log(rows, catalogue)
    except IntegrityError as error:
        rows.findings.append(Finding("S-009", store.layout.database.name, str(error)))
    return rows


def _check_log(rows: _Rows, catalogue: Catalogue) -> Iterator[Finding]:
    try:
        events = catalogue.events()
    except IntegrityError as error:
        yield Finding("S-011", "events", str(error))
        return
    if problem := chain_problem(events):
        yield Finding("S-011", "events", problem)
        return
    rows.events = events
    expected, found = State.after(events), catalogue.state()
    for key in sorted(set(expected.tags) | set(found.tags)):
        if expected.tags.get(key) != found.tags.get(key):
            what = f"the log says {expected.tags.get(key)}, the row {found.tags.get(key)}"
            yield Finding("S-010", f"tags/{key[0]}:{key[1]}", what)
    for holding in sorted(set(expected.holdings) | set(found.holdings)):
        if expected.holdings.get(holding) != found.holdings.get(holding):
            what = f"the log says {expected.holdings.get(holding)}, the row {found.holdings.get(holding)}"
            yield Finding("S-010", f"holdings/{holding[0]}@{holding[1]}", what)


def _committed(store: Store, rows: _Rows) -> int:
    """The sequence of the database's last event now: what was pushed since the rows were read is in the journal."""
    if rows.events is None:
        return 0
    with store.database.reading() as connection:
        head = Catalogue(connection).head()
    return head.sequence if head else 0


def _check_journal(rows: _Rows, journal: JournalContent, committed: int) -> Iterator[Finding]:
    if journal.problem is not None:
        yield Finding("S-012", "journal", journal.problem)
    if rows.events is None:
        return  # nothing to compare with, which has been said
    both = zip(rows.events, journal.events, strict=False)
    apart = next((ours.sequence for ours, theirs in both if ours.hash != theirs.hash), None)
    if apart is not None:
        yield Finding("S-013", "journal", f"event {apart} is another one than in the database")
    elif len(journal.events) < len(rows.events):
        yield Finding("S-013", "journal", f"ends before event {rows.events[len(journal.events)].sequence}")
    ahead = [event for event in journal.events[len(rows.events) :] if event.sequence > committed]
    if apart is None and (ahead or journal.torn):
        yield _ahead(ahead, journal.torn)


def _ahead(ahead: Sequence[Event], torn: int) -> Finding:
    """One transaction is what a crash leaves, and the next writer takes back; more is an old database."""
    if len({event.transaction for event in ahead}) > 1:
        return Finding("S-014", "journal", f"{len(ahead)} events are not in the database: is it an old copy?")
    what = f"{len(ahead)} events and {torn} bytes of a transaction that was not committed; the next write drops them"
    return Finding("S-014", "journal", what, Severity.NOTE)


def _check_blobs(store: Store, rows: _Rows) -> Iterator[Finding]:
    """Rehash every blob; sizes are looked at first, since they tell at once."""
    needed = {digest: size for entry in rows.entries for digest, size in entry.blobs.items()}
    present: set[Digest] = set()
    for digest in store.blobs:
        path = store.blobs.path(digest)
        place = _place(store, path)
        present.add(digest)
        try:
            state = path.stat()
            if needed.get(digest, state.st_size) != state.st_size:
                yield Finding("S-002", place, f"has {state.st_size} bytes, not {needed[digest]}")
            elif not store.blobs.verify(digest):
                yield Finding("S-001", place, "its bytes have another digest; push the same adapter again to mend it")
        except (OSError, LoregError) as error:
            yield Finding("S-001", place, f"cannot be read: {error}")
            continue
        if state.st_mode & 0o222:
            yield Finding("S-007", place, "is writable", Severity.WARNING)
        if rows.readable and digest not in needed:
            yield Finding("S-004", place, "no manifest needs it; `loreg gc` takes it away", Severity.NOTE)
    for entry in rows.entries:
        for digest in entry.blobs:
            if digest not in present:
                yield Finding("S-003", f"manifests/{entry.digest}", f"the blob {digest} is not there")


def _check_entries(store: Store, entries: Sequence[Entry]) -> Iterator[Finding]:
    for entry in entries:
        try:
            if read_entry(store.blobs, entry.digest) != entry:
                yield Finding("S-008", f"manifests/{entry.digest}", "the row says other things than the blobs")
        except NotFoundError:
            continue  # S-003 has said so
        except (IntegrityError, ConflictError) as error:
            yield Finding("S-015", f"manifests/{entry.digest}", str(error))


def _check_folder(store: Store) -> Iterator[Finding]:
    with storage_errors(store.layout.root):
        paths = sorted(store.layout.root.iterdir())
    foreign = [path for path in paths if path.is_symlink() or not store.layout.is_own(path.name)]
    for path in (*foreign, *store.blobs.foreign()):
        yield Finding("S-005", _place(store, path), "was not put there by loreg", Severity.WARNING)
    for path in leftovers(store, time.time()):
        yield Finding("S-006", _place(store, path), "is left over, or being written right now", Severity.NOTE)


def _place(store: Store, path: Path) -> str:
    return str(path.relative_to(store.layout.root))
