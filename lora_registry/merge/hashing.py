"""Digests of a file whose blocks come in any order, taken while they are in memory.

sha256 goes through a file from its first byte to its last. The workers that write the blocks finish them in
another order, so each hands its block over, and whoever closes the gap hashes everything that is then in
order. Nobody waits for anybody, and no thread does nothing but hash. Of the base's file and the output, one
state is kept until the first block in which they differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import inf
from threading import Lock
from typing import TYPE_CHECKING

from lora_registry.digest import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

Bytes = bytes | memoryview


class OrderedHash:
    """sha256 of blocks that are numbered without gaps and offered in any order.

    Args:
        first: number of the first block.
        state: what was hashed before; None begins anew.
    """

    def __init__(self, first: int = 0, state: _Hash | None = None) -> None:
        self._state = hashlib.sha256() if state is None else state
        self._next = first
        self._waiting: dict[int, tuple[Bytes, Callable[[], None]]] = {}
        self._lock = Lock()
        self._busy = False

    def offer(self, number: int, data: Bytes, done: Callable[[], None]) -> None:
        """Take block ``number``; ``data`` must not change until ``done`` is called, here or by another thread."""
        with self._lock:
            self._waiting[number] = data, done
            if self._busy:
                return
            self._busy = True
        while True:
            with self._lock:
                if self._next not in self._waiting:
                    self._busy = False
                    return
                data, done = self._waiting.pop(self._next)
            self._state.update(data)
            with self._lock:
                self._next += 1
            done()

    def fork(self) -> _Hash:
        """A copy of the state; only while nothing is being hashed."""
        return self._state.copy()

    def digest(self) -> Digest:
        """The digest of everything that was offered."""
        assert not self._waiting, "a block before these is missing"
        return Digest(self._state.hexdigest())


class FilePair:
    """The digests of a base's file and of the output that is made from it.

    Args:
        differs_at: number of the first block whose bytes in the output are not those in the base's file; None
            where there is none.
    """

    def __init__(self, differs_at: int | None) -> None:
        self._differs_at = inf if differs_at is None else differs_at
        self._read = OrderedHash()
        self._written: OrderedHash | None = None
        self._early: list[tuple[int, Bytes, Callable[[], None]]] = []
        self._lock = Lock()
        if self._differs_at == 0:
            self._fork()

    def offer(self, number: int, read: Bytes, written: Bytes, release: Callable[[], None]) -> None:
        """Take a block of both; ``release`` is called when neither buffer is needed any more."""
        if number < self._differs_at:
            last = number + 1 == self._differs_at
            self._read.offer(number, read, (lambda: self._fork_and(release)) if last else release)
            return
        release_both = _Countdown(2, release)
        with self._lock:
            early = self._written is None
            if early:
                self._early.append((number, written, release_both))
        if not early:
            assert self._written is not None
            self._written.offer(number, written, release_both)
        self._read.offer(number, read, release_both)

    def _fork_and(self, release: Callable[[], None]) -> None:
        """What follows the last block that both files share; no later block of the base is hashed before it ends."""
        self._fork()
        release()

    def _fork(self) -> None:
        with self._lock:
            self._written = OrderedHash(int(self._differs_at), self._read.fork())
            early, self._early = self._early, []
        for number, data, done in early:
            self._written.offer(number, data, done)

    def digests(self) -> tuple[Digest, Digest]:
        """Those of the base's file and of the output, when every block has been offered."""
        read = self._read.digest()
        return read, read if self._written is None else self._written.digest()


class _Countdown:
    """Calls a function when it has been called itself ``count`` times."""

    def __init__(self, count: int, then: Callable[[], None]) -> None:
        self._count, self._then, self._lock = count, then, Lock()

    def __call__(self) -> None:
        with self._lock:
            self._count -= 1
            over = self._count == 0
        if over:
            self._then()
