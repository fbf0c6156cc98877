"""Files and folders that are being written: hidden, beside what they become, and locked as long as their writer lives.

A writer that is killed leaves them, with a model inside. The kernel lets go of its lock, and whoever writes to the
same place next removes them. Where the file system has no locks, nothing is ever removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def temporary(path: Path, make: Callable[[Path], object]) -> Iterator[Path]:
    """A new file or folder beside ``path`` under a name that nobody else takes, gone at the end unless renamed.

    Args:
        path: what it becomes; what killed writers left for it is removed.
        make: makes it under the name that it is given.

    Raises:
        OSError: as ``make`` does.
    """
    sweep(path)
    lock = None
    while lock is None:
        name = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        make(name)
        lock = _lock(name)
    try:
        yield name
    finally:
        _remove(name)
        os.close(lock)


def sweep(path: Path) -> None:
    """Remove what writers that are dead left beside ``path``; what cannot be removed stays."""
    left = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}\.tmp", re.ASCII)
    with suppress(OSError), os.scandir(path.parent) as entries:
        for name in [path.with_name(entry.name) for entry in entries if left.fullmatch(entry.name)]:
            with suppress(OSError):
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(name)
                finally:
                    os.close(descriptor)


def _lock(name: Path) -> int | None:
    """A descriptor that keeps ``name`` from being swept; None where it was swept before it was locked."""
    try:
        descriptor = os.open(name, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # it is being swept
        os.close(descriptor)
        return None
    except OSError:  # no locks here, so nobody sweeps
        return descriptor
    if not os.path.lexists(name):
        os.close(descriptor)
        return None
    return descriptor


def _remove(name: Path) -> None:
    """Remove a file or folder; what cannot be removed is left to the next writer."""
    with suppress(OSError):
        if stat.S_ISDIR(name.lstat().st_mode):
            shutil.rmtree(name, ignore_errors=True)
        else:
            name.unlink()
