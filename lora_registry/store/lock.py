"""One lock for a whole registry, held by the kernel, so that a killed process lets go of it.

Shared: everything that uses the database, and a push from its first blob to its commit. Exclusive: what
must not meet a push half-way, which is sweeping blobs, migrating, and swapping the database for another.

Who waits to be alone would wait for ever where there is always somebody inside. Everybody therefore comes in through
a gate, a second lock that is held only while one waits for the first: who wants to be alone shuts it behind them, and
those inside leave one by one.
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
        gate: the file whose lock is the gate; another one, which exists.
        timeout: seconds to wait before giving up.
    """

    def __init__(self, path: Path, gate: Path, *, timeout: float = 30.0) -> None:
        self.path = path
        self.gate = gate
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
        deadline = time.monotonic() + self.timeout
        with _opened(self.path) as lock:
            with _opened(self.gate) as gate:
                self._take(gate, how, deadline)
                self._take(lock, how, deadline)
            yield

    def _take(self, descriptor: int, how: int, deadline: float) -> None:
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


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """A descriptor of ``path``; a lock on it ends with the block."""
    with storage_errors(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
