"""One lock for a whole registry, held by the kernel, so that a killed process lets go of it.

Shared: everything that uses the database, and a push from its first blob to its commit. Exclusive: what
must not meet a push half-way, which is sweeping blobs, migrating, and swapping the database for another.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_registry.errors import ConflictError
from lora_registry.format.files import storage_errors

_POLL = 0.02  # seconds between attempts; flock itself cannot wait for a limited time


class StoreLock:
    """Shared and exclusive use of a registry's folder.

    Attributes:
        path: the lock file, which exists.
        timeout: seconds to wait before giving up.
    """

    def __init__(self, path: Path, *, timeout: float = 30.0) -> None:
        self.path = path
        self.timeout = timeout

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep the blobs and the database in place; any number of processes at once.

        Raises:
            ConflictError: somebody held the lock exclusively for longer than the timeout.
        """
        with self._held(fcntl.LOCK_SH):
            yield

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Be alone. Not re-entrant, and not to be asked for inside :meth:`shared`.

        Raises:
            ConflictError: others used the registry for longer than the timeout.
        """
        with self._held(fcntl.LOCK_EX):
            yield

    @contextmanager
    def _held(self, how: int) -> Iterator[None]:
        with storage_errors(self.path):
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._take(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int, how: int) -> None:
        deadline = time.monotonic() + self.timeout
        while True:
            try:
                fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ConflictError(
                        f"the registry {self.path.parent} was in use for {self.timeout:g} seconds; try again"
                    ) from None
                time.sleep(_POLL)
            else:
                return
