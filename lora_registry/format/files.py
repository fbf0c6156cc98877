"""Files: reading without waiting, and writing all of a file under its final name, or nothing."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TypeAlias

from lora_registry.errors import (
    ConflictError,
    InvalidInputError,
    LoregError,
    MachineError,
    NotAllowedError,
    NotFoundError,
)
from lora_registry.format.temporary import temporary

_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is too big",
}

_NO_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})
"""What file systems say that leave copying to the program."""

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
"""What file systems say that have none."""

Opener: TypeAlias = Callable[[Path], IO[bytes]]
"""How a file is opened to be read: :func:`open_file`, or one that also counts, traces or restricts."""


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file to read it. A named pipe would wait for a writer, and a device may have no end.

    Raises:
        InvalidInputError: it is something else than a file or a folder.
        OSError: as :func:`open` does.
    """
    stream = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise InvalidInputError(f"{path}: a pipe or a device, not a file")
    return stream


@contextmanager
def atomic_write(path: Path, *, overwrite: bool = False) -> Iterator[IO[bytes]]:
    """Open a file beside ``path`` that takes its name when the block ends well, and vanishes when it does not.

    Raises:
        ConflictError: ``path`` exists and ``overwrite`` is false.
        NotFoundError: the folder of ``path`` does not exist.
        NotAllowedError: the folder may not be written.
        MachineError: the disk is full, or failed.
    """
    if not overwrite:
        refuse_existing(path)
    with storage_errors(path), temporary(path, lambda name: name.touch(exist_ok=False)) as unfinished:
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if overwrite:
            unfinished.replace(path)
        else:
            claim(unfinished, path)
        sync_folder(path.parent)


@contextmanager
def staging_folder(path: Path) -> Iterator[Path]:
    """A new folder beside ``path``, to make files in under their final names; gone at the end, unless renamed."""
    if not path.parent.is_dir():
        raise NotFoundError(f"no such folder: {path.parent}")
    with temporary(path, Path.mkdir) as folder:
        yield folder


def refuse_existing(*paths: Path) -> None:
    """Refuse to write over anything, links that lead nowhere included.

    Raises:
        ConflictError: one of ``paths`` exists.
    """
    for path in paths:
        if os.path.lexists(path):
            raise _taken(path)


def _taken(path: Path) -> ConflictError:
    return ConflictError(f"{path} exists; remove it or choose another name")


def claim(unfinished: Path, path: Path) -> None:
    """Give ``unfinished`` the name ``path``, which must be free even if it was taken a moment ago."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        unfinished.replace(path)


def copy_bytes(source: IO[bytes], target: IO[bytes]) -> None:
    """Write all of ``source``, of which nothing has been read, at the position of ``target``.

    The file system shares blocks where it can.
    """
    target.flush()
    size = left = os.fstat(source.fileno()).st_size
    try:
        while left > 0 and hasattr(os, "copy_file_range"):  # Linux
            done = os.copy_file_range(source.fileno(), target.fileno(), min(left, 1 << 30))
            if done == 0:
                break
            left -= done
    except OSError as error:
        if error.errno not in _NO_COPY_IN_KERNEL:
            raise
    if left > 0:
        source.seek(size - left)
        target.seek(os.lseek(target.fileno(), 0, os.SEEK_CUR))
        shutil.copyfileobj(source, target, 1 << 20)


def sync_folder(folder: Path) -> None:
    """Make the names in ``folder`` survive a power cut; a no-op where folders cannot be synced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about ``path`` into loreg's errors, one line each."""
    try:
        yield
    except LoregError:
        raise
    except OSError as error:
        raise from_os_error(error, path) from error


def from_os_error(error: OSError, path: Path | None = None) -> LoregError:
    """The error of loreg that says what the operating system said."""
    place = error.filename or path or "a file"
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"no such file or folder: {place}")
    if isinstance(error, PermissionError):
        return NotAllowedError(f"not allowed: {place}")
    if error.errno in _FULL:
        return MachineError(f"{_FULL[error.errno]}: {path or place} was not written")
    return MachineError(f"{place}: {error.strerror or error}")
