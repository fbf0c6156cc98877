"""The event log as a file, so that a lost database can be made again: one line of canonical JSON an event.

A transaction appends and syncs its lines before it commits. The journal is therefore never behind the
database; after a crash between the two it is ahead by one transaction, whose lines the next writer takes
back (:meth:`Journal.reconcile`), since nobody was told that it succeeded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from lora_registry.errors import IntegrityError
from lora_registry.format.canonical import JsonError, decode, encode
from lora_registry.format.files import atomic_write, storage_errors, sync_folder
from lora_registry.store.events import Event, chain_problem

_WINDOW = 1 << 16  # bytes of the end that are looked at first; a line has about 500


@dataclass(frozen=True, slots=True)
class JournalContent:
    """Everything that a journal says.

    Attributes:
        events: the events up to the first line that is none, or breaks the chain.
        problem: what is wrong with that line; None where all lines are sound.
        torn: bytes at the end that are no whole line, as an append leaves them that was cut off.
    """

    events: tuple[Event, ...] = ()
    problem: str | None = None
    torn: int = 0


class Journal:
    """The journal at ``path``; a file that does not exist is an empty journal."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def is_empty(self) -> bool:
        """Whether there is nothing in it."""
        with storage_errors(self.path):
            return not self.path.exists() or self.path.stat().st_size == 0

    def read(self) -> JournalContent:
        """All events, and what is wrong."""
        with storage_errors(self.path):
            data = b"" if self.is_empty() else self.path.read_bytes()
        *lines, rest = data.split(b"\n")
        events: list[Event] = []
        for number, line in enumerate(lines, 1):
            try:
                event = _parse(line)
            except ValueError as error:
                return JournalContent(tuple(events), f"line {number}: {error}")
            if problem := chain_problem([event]) if number == 1 else _link_problem(events[-1], event):
                return JournalContent(tuple(events), f"line {number}: {problem}")
            events.append(event)
        return JournalContent(tuple(events), None, len(rest))

    def append(self, events: Sequence[Event]) -> None:
        """Add lines and sync them; takes them back where that fails.

        Raises:
            MachineError: the disk is full, or failed.
        """
        if not events:
            return
        with storage_errors(self.path), self.path.open("ab", buffering=0) as stream:
            begin = stream.seek(0, os.SEEK_END)
            try:
                _write_all(stream, b"".join(encode(event.to_json()) + b"\n" for event in events))
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(begin)
                raise
            if begin == 0:
                sync_folder(self.path.parent)

    def rewrite(self, events: Sequence[Event]) -> None:
        """Make the journal say ``events`` and nothing else; all or nothing."""
        with atomic_write(self.path, overwrite=True) as stream:
            stream.writelines(encode(event.to_json()) + b"\n" for event in events)

    def reconcile(self, head: Event | None) -> None:
        """Cut off what a crashed writer appended after ``head``, the database's last event.

        To be called with the database's write lock held. Looks at the end of the file only.

        Raises:
            IntegrityError: the journal does not contain ``head``, or is ahead by more than one transaction,
                as it is when an old copy of the database was put back. Nothing is cut then.
        """
        if self.is_empty():
            if head is not None:
                raise self._diverged("is empty, and the database is not")
            return
        with storage_errors(self.path), self.path.open("r+b") as stream:
            size = stream.seek(0, os.SEEK_END)
            end, beyond = self._find(stream, size, head)
            if len({event.transaction for event in beyond}) > 1:
                raise self._diverged(f"is ahead of the database by {len(beyond)} events")
            if end < size:
                stream.truncate(end)
                os.fsync(stream.fileno())

    def _find(self, stream: BinaryIO, size: int, head: Event | None) -> tuple[int, list[Event]]:
        """Where the line of ``head`` ends, and the events after it."""
        window = _WINDOW
        while True:
            begin = max(0, size - window)
            stream.seek(begin)
            data = stream.read(size - begin)
            # A window that begins inside a line leaves that line to the next, larger window.
            start = 0 if begin == 0 else data.find(b"\n") + 1
            end = len(data)
            beyond: list[Event] = []
            while end > start:
                line_start = data.rfind(b"\n", start, end - 1) + 1 or start
                try:
                    event = _parse(data[line_start : end - 1]) if data[end - 1 : end] == b"\n" else None
                except ValueError:
                    event = None  # what a power cut left of an append
                if event is not None:
                    if head is not None and event.hash == head.hash:
                        return begin + end, beyond
                    if head is not None and event.sequence <= head.sequence:
                        what = "has another" if event.sequence == head.sequence else "lacks"
                        raise self._diverged(f"{what} event {head.sequence}, the database's last")
                    beyond.append(event)
                end = line_start
            if begin == 0:
                if head is not None:
                    raise self._diverged(f"lacks event {head.sequence}, the database's last")
                return 0, beyond
            window *= 4

    def _diverged(self, what: str) -> IntegrityError:
        return IntegrityError(f"the journal {self.path} {what}; see `loreg fsck`, and mend it with `loreg reindex`")


def _parse(line: bytes) -> Event:
    """The event of a line; ValueError where it holds none."""
    try:
        document = decode(line)
    except JsonError as error:
        raise ValueError(f"not an event: {error}") from None
    event = Event.from_json(document)
    if encode(document) != line:
        raise ValueError("not spelled canonically")
    return event


def _link_problem(before: Event, event: Event) -> str | None:
    if event.sequence != before.sequence + 1:
        return f"event {event.sequence} follows event {before.sequence}"
    return (
        None if event.previous == before.hash else f"event {event.sequence} does not carry the hash of the one before"
    )


def _write_all(stream: BinaryIO, data: bytes) -> None:
    """Write all of ``data`` to an unbuffered file, which may take it in parts."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]
