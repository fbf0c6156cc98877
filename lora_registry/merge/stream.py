"""Bytes in, bytes out, both hashed on the way: nothing is read a second time for its digest.

Hashing costs about as much as the arithmetic, and hashlib, file writes and numpy all let go of the
interpreter lock, so each has a thread of its own. A few blocks are under way at a time, whatever the size
of the model.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lora_registry.digest import Digest
from lora_registry.format.files import copy_bytes
from lora_registry.merge.receipt import FileRecord

CHUNK = 1 << 22  # bytes of an untouched tensor that are passed on at a time
_BATCH = 1 << 21  # bytes that go to the threads together: every hand-over costs a turn of the interpreter lock
_UNDER_WAY = 4  # batches that may wait for the slowest thread


class HashedCopy:
    """Writes an output file and hashes it, and hashes the input that it comes from, in three threads.

    Use as a context manager; after the block, :attr:`read` and :attr:`written` are the digests.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.read = hashlib.sha256()
        self.written = hashlib.sha256()
        self._stream = stream
        self._threads = [ThreadPoolExecutor(1) for _ in range(3)]
        self._to_write: list[bytes | memoryview] = []
        self._to_read: list[bytes | memoryview] = []
        self._waiting = 0
        self._under_way: deque[list[Future[None]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._send()
                self._settle(0)
        finally:
            for thread in self._threads:
                thread.shutdown(wait=True, cancel_futures=True)

    def put(self, written: bytes | memoryview, read: bytes | memoryview | None) -> None:
        """Take the next bytes of the output and, where they come from the base, the bytes they come from.

        The bytes must not change afterwards.

        Raises:
            OSError: writing earlier bytes failed.
        """
        self._to_write.append(written)
        if read is not None:
            self._to_read.append(read)
        self._waiting += len(written)
        if self._waiting >= _BATCH:
            self._send()

    def _send(self) -> None:
        reader, hasher, writer = self._threads
        to_write, to_read = self._to_write, self._to_read
        self._to_write, self._to_read, self._waiting = [], [], 0
        jobs = [
            writer.submit(_feed, self._stream.write, to_write),
            hasher.submit(_feed, self.written.update, to_write),
            reader.submit(_feed, self.read.update, to_read),
        ]
        self._under_way.append(jobs)
        self._settle(_UNDER_WAY)

    def _settle(self, left: int) -> None:
        while len(self._under_way) > left:
            jobs = self._under_way.popleft()
            wait(jobs)
            for job in jobs:
                job.result()


def _feed(take: Callable[[bytes | memoryview], object], chunks: list[bytes | memoryview]) -> None:
    for chunk in chunks:
        take(chunk)


def copy_file(source: Path, target: Path) -> FileRecord:
    """Copy a file and make the copy durable; the file system shares blocks where it can.

    Returns:
        The record of ``source`` under its own name, which is that of the copy too.
    """
    with source.open("rb") as reader, target.open("xb") as writer, ThreadPoolExecutor(1) as thread:
        digest = thread.submit(Digest.of_file, source)
        size = os.fstat(reader.fileno()).st_size
        copy_bytes(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
        return FileRecord(target.name, size, digest.result())
