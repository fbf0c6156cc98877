"""What of a merge is on the disk already: a line for every batch of blocks, so that a killed merge can go on.

A block stands in the journal only if its bytes are on the disk: the output files are synced first, then the line
is written and synced. The journal is synced about once a second by a thread of its own, while the workers go on.
What a power cut may leave is a last line that is cut off or damaged, which counts for nothing.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import Any, Self

from lora_registry.adapter import Json
from lora_registry.errors import ConflictError, NotFoundError
from lora_registry.merge.threads import join_begun
from lora_registry.ops.fidelity import Sums

NAME = "journal.jsonl"
SECONDS = 1.0
"""Between two syncs: what is lost by a kill is the work of about so long."""

Finished = dict[str, dict[int, Sums | None]]
"""File name to the number of each finished block, and to the sums of its fidelity where it has some."""


class Journal:
    """The journal of one merge, open to be added to; use as a context manager.

    Args:
        path: the file; what stands in it after ``valid`` bytes is dropped.
        valid: length of what is kept.
        sync: makes every byte that was written to the output files until now durable.
    """

    def __init__(self, path: Path, valid: int, sync: Callable[[], None]) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._descriptor, valid)
        self._sync = sync
        self._pending: list[list[Json]] = []
        self._changed = Condition()
        self._closing = False
        self._error: BaseException | None = None
        # Python waits for other threads when it ends: one whose end an interrupt took away would keep it forever.
        self._thread = Thread(target=self._run, name="loreg-journal", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except BaseException:  # an interrupt reaches this thread while it waits for the other to begin
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
        if error is None and self._error is not None:
            raise self._error

    def _close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        join_begun([self._thread])
        os.close(self._descriptor)

    def finished(self, file: str, block: int, figures: Sums | None) -> None:
        """Note that a block was written; it stands in the journal after the next sync.

        Raises:
            OSError: an earlier sync failed.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            self._pending.append([file, block, None if figures is None else list(figures)])

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                self._changed.wait_for(lambda: self._closing, SECONDS)
                closing = self._closing
                taken, self._pending = self._pending, []
            try:
                if taken:
                    self._sync()
                    self._write({"blocks": taken})
            except OSError as error:
                with self._changed:
                    self._error = error
                return

    def _write(self, record: Mapping[str, object]) -> None:
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]
        os.fsync(self._descriptor)


def begin(path: Path, identity: Mapping[str, Json]) -> int:
    """Begin a journal at ``path`` with a line that says what is merged.

    Returns:
        Its length.
    """
    line = json.dumps({"merge": identity}, sort_keys=True).encode() + b"\n"
    with path.open("xb") as stream:
        stream.write(line)
        stream.flush()
        os.fsync(stream.fileno())
    return len(line)


def resume(path: Path, identity: Mapping[str, Json]) -> tuple[int, Finished]:
    """Read the journal of a merge that was killed.

    Returns:
        The length of what is sound in it, and the blocks that are on the disk.

    Raises:
        NotFoundError: there is none.
        ConflictError: it is the journal of another merge: of another base, adapter, or other options.
    """
    if not path.is_file():
        raise NotFoundError(f"there is no interrupted merge to resume: {path.parent} has no {path.name}")
    valid, finished = 0, Finished()
    for number, line in enumerate(path.read_bytes().splitlines(keepends=True)):
        record = _record(line)
        if record is None:
            break
        if number == 0:
            _require_same(record.get("merge"), identity)
        blocks: list[tuple[str, int, list[Any] | None]] = record.get("blocks", [])
        for file, block, figures in blocks:
            finished.setdefault(file, {})[block] = None if figures is None else Sums(*figures)
        valid += len(line)
    if not valid:
        raise NotFoundError(f"there is nothing to resume: {path} was not even begun")
    return valid, finished


def _record(line: bytes) -> dict[str, Any] | None:
    """One line, or None where it is damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _require_same(before: object, now: Mapping[str, Json]) -> None:
    known = before if isinstance(before, dict) else {}
    changed = [name for name in sorted({*known, *now}) if known.get(name) != now.get(name)]
    if changed:
        raise ConflictError(
            f"the interrupted merge cannot be resumed: {' and '.join(changed)} changed since; "
            "merge anew without resuming"
        )
