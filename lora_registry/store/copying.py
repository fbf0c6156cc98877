"""Taking a blob out of the store: a verified copy that shares nothing the user could damage.

Never a hard link: an edit of the copy would be an edit of the blob.
"""

from __future__ import annotations

import fcntl
import hashlib
from pathlib import Path
from typing import IO

from lora_registry.digest import CHUNK, Digest
from lora_registry.errors import IntegrityError
from lora_registry.format.files import atomic_write, storage_errors

_FICLONE = 0x40049409  # _IOW(0x94, 9, int) of linux/fs.h: share the blocks until one side is written


def copy_out(blob: Path, digest: Digest, out: Path) -> None:
    """Copy ``blob`` to ``out``, sharing blocks where the file system can, and verify it on the way.

    Raises:
        ConflictError: ``out`` exists.
        IntegrityError: the blob's bytes do not have ``digest``; nothing is left.
        MachineError: the disk is full, or failed; nothing is left.
    """
    with storage_errors(blob), blob.open("rb") as source, atomic_write(out) as target:
        copied = Digest.of_stream(source) if _cloned(source, target) else _copied(source, target)
        if copied != digest:
            raise IntegrityError(f"the bytes of {blob} do not have the digest in its name; nothing was written")


def _cloned(source: IO[bytes], target: IO[bytes]) -> bool:
    try:
        fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False  # another file system, or one that cannot share blocks
    return True


def _copied(source: IO[bytes], target: IO[bytes]) -> Digest:
    state = hashlib.sha256()
    while chunk := source.read(CHUNK):
        state.update(chunk)
        target.write(chunk)
    return Digest(state.hexdigest())
