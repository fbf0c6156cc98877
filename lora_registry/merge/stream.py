"""Bytes in, bytes out, both hashed on the way: nothing is read a second time for its digest.

Hashing costs about as much as the arithmetic, and hashlib, file writes and numpy all let go of the
interpreter lock, so each has a thread of its own. A few blocks are under way at a time, whatever the size
of the model.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from lora_registry.digest import Digest
from lora_registry.merge.receipt import FileRecord

CHUNK = 1 << 22  # bytes of an untouched tensor that are passed on at a time
_UNDER_WAY = 4  # chunks that may wait for the slowest thread
_NO_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


class HashedCopy:
    """Writes an output file and hashes it, and hashes the input that it comes from, in three threads.

    Use as a context manager; after the block, :attr:`read` and :attr:`written` are the digests.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self.read = hashlib.sha256()
        self.written = hashlib.sha256()
        self._stream = stream
        self._threads = [ThreadPoolExecutor(1) for _ in range(3)]
        self._under_way: deque[list[Future[object]]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self._settle(0)

    def put(self, written: bytes | memoryview, read: bytes | memoryview | None) -> None:
        """Take the next bytes of the output and, where they come from the base, the bytes they come from.

        Raises:
            OSError: writing an earlier chunk failed.
        """
        reader, hasher, writer = self._threads
        jobs: list[Future[object]] = [writer.submit(self._stream.write, written)]
        jobs.append(hasher.submit(self.written.update, written))
        if read is not None:
            jobs.append(reader.submit(self.read.update, read))
        self._under_way.append(jobs)
        self._settle(_UNDER_WAY)

    def _settle(self, left: int) -> None:
        while len(self._under_way) > left:
            jobs = self._under_way.popleft()
            wait(jobs)
            for job in jobs:
                job.result()


def copy_file(source: Path, target: Path) -> FileRecord:
    """Copy a file and make the copy durable; the file system shares blocks where it can.

    Returns:
        The record of ``source`` under its own name, which is that of the copy too.
    """
    with source.open("rb") as reader, target.open("xb") as writer, ThreadPoolExecutor(1) as thread:
        digest = thread.submit(Digest.of_file, source)
        size = os.fstat(reader.fileno()).st_size
        _copy_bytes(reader, writer, size)
        writer.flush()
        os.fsync(writer.fileno())
        return FileRecord(target.name, size, digest.result())


def _copy_bytes(reader: IO[bytes], writer: IO[bytes], size: int) -> None:
    done = 0
    try:
        while done < size:
            count = os.copy_file_range(reader.fileno(), writer.fileno(), size - done, done, done)
            if count == 0:
                break
            done += count
    except OSError as error:
        if error.errno not in _NO_COPY_IN_KERNEL or done:
            raise
    if done < size:
        reader.seek(done)
        writer.seek(done)
        shutil.copyfileobj(reader, writer, CHUNK)
