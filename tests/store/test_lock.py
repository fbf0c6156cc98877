"""Who waits for whom in a registry."""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack
from pathlib import Path
from threading import Event, Thread

import pytest

from lora_registry.errors import ConflictError
from lora_registry.store.lock import StoreLock
from lora_registry.store.store import Store


@pytest.fixture
def lock(store: Store) -> StoreLock:
    """The lock of a registry."""
    return store.lock


@pytest.fixture
def impatient(lock: StoreLock) -> StoreLock:
    """The same lock for somebody who gives up soon."""
    return StoreLock(lock.path, lock.gate, timeout=0.05)


def is_shut(lock: StoreLock) -> bool:
    """Whether somebody who wants to be alone keeps newcomers out."""
    descriptor = os.open(lock.gate, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def test_who_waits_to_be_alone_is_next(lock: StoreLock, impatient: StoreLock) -> None:
    """Newcomers wait behind, give up when their time is over, and come in afterwards."""
    granted = Event()

    def ask() -> None:
        with lock.exclusive():
            granted.set()

    waiting = Thread(target=ask)
    with lock.shared():
        waiting.start()
        while not is_shut(lock):
            pass
        with pytest.raises(ConflictError, match="in use"), impatient.shared():
            pass
        assert not granted.is_set()
    waiting.join()
    assert granted.is_set()
    with impatient.shared(), impatient.shared():
        pass


def test_who_gives_up_opens_the_gate(lock: StoreLock, impatient: StoreLock) -> None:
    """Somebody who waited in vain is in nobody's way."""
    with lock.shared():
        with pytest.raises(ConflictError, match="in use"), impatient.exclusive():
            pass
        with impatient.shared():
            pass


def test_a_crowd_does_not_keep_anybody_out(lock: StoreLock, impatient: StoreLock, tmp_path: Path) -> None:
    """Where somebody new is always inside before another leaves, who comes through the gate is alone all the same."""
    inside, over = Event(), Event()

    def crowd() -> None:
        held = ExitStack()
        while not over.is_set():
            again = ExitStack()
            try:
                again.enter_context(impatient.shared())
            except ConflictError:  # the gate is shut
                inside.clear()
                held.close()
                again.enter_context(lock.shared())
            held.close()
            held = again
            inside.set()
        held.close()

    thread = Thread(target=crowd)
    thread.start()
    try:
        inside.wait()
        (tmp_path / "no gate").touch()
        with pytest.raises(ConflictError), StoreLock(lock.path, tmp_path / "no gate", timeout=0.3).exclusive():
            pass  # what happened before there was a gate
        for _ in range(3):
            with lock.exclusive():
                assert not inside.is_set()
            inside.wait()
    finally:
        over.set()
        thread.join()
