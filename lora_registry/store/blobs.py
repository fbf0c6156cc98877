"""Content-addressed files: ``blobs/sha256/ab/<64 hexadecimal digits>``, read-only once they are there.

A blob appears under its name whole or not at all: it is written and hashed under a temporary name on the
same file system, synced, and then linked to its final name.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError, NotFoundError
from lora_registry.format.files import claim, storage_errors, sync_folder

_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MODE = 0o444


@dataclass(frozen=True, slots=True)
class StagedBlob:
    """A blob that is written and synced and has no name yet.

    Attributes:
        path: where its bytes are until the ``with`` block ends.
        digest: their sha256.
        size: their number.
    """

    path: Path
    digest: Digest
    size: int


class BlobStore:
    """The blobs below one folder.

    Attributes:
        folder: holds ``sha256/``.
        temporary: for files that are being written; on the same file system.
    """

    def __init__(self, folder: Path, temporary: Path) -> None:
        self.folder = folder
        self.temporary = temporary

    def path(self, digest: Digest) -> Path:
        """Where the blob is, or would be."""
        return self.folder / "sha256" / digest.hex[:2] / digest.hex

    def locate(self, digest: Digest) -> Path:
        """Where the blob is.

        Raises:
            NotFoundError: it is not there.
        """
        path = self.path(digest)
        if not path.is_file():
            raise NotFoundError(f"no blob {digest} in {self.folder}")
        return path

    def read(self, digest: Digest) -> bytes:
        """The bytes of a small blob, verified.

        Raises:
            NotFoundError: it is not there.
            IntegrityError: its bytes have another digest.
        """
        path = self.locate(digest)
        with storage_errors(path):
            data = path.read_bytes()
        if Digest.of(data) != digest:
            raise IntegrityError(f"the bytes of {path} do not have the digest in its name")
        return data

    def verify(self, digest: Digest) -> bool:
        """Whether the blob is there and its bytes have the digest. Reads all of it."""
        path = self.path(digest)
        with storage_errors(path):
            return path.is_file() and Digest.of_file(path) == digest

    def put(self, chunks: Iterable[bytes | memoryview]) -> Digest:
        """Store ``chunks``, however often they are stored already.

        Raises:
            MachineError: the disk is full, or failed; nothing is left.
            NotAllowedError: the folder may not be written.
        """
        with self.stage(chunks) as staged:
            self.publish(staged)
        return staged.digest

    @contextmanager
    def stage(self, chunks: Iterable[bytes | memoryview]) -> Iterator[StagedBlob]:
        """Write ``chunks`` to a temporary file and sync it; the file is gone when the block ends.

        What is staged can be checked before :meth:`publish` makes it a blob.
        """
        path = self.temporary / f"{os.getpid()}-{secrets.token_hex(8)}"
        state = hashlib.sha256()
        size = 0
        try:
            with storage_errors(path):
                self.temporary.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as stream:
                    for chunk in chunks:
                        state.update(chunk)
                        size += stream.write(chunk)
                    stream.flush()
                    os.fchmod(stream.fileno(), _MODE)
                    os.fsync(stream.fileno())
            yield StagedBlob(path, Digest(state.hexdigest()), size)
        finally:
            with suppress(OSError):  # what cannot be removed now is left to garbage collection
                path.unlink()

    def publish(self, staged: StagedBlob) -> bool:
        """Give a staged blob its name.

        Where the name is taken, the blob there is read again: a push that reports success says that the
        bytes are there, so a damaged blob is replaced by the sound one at hand. A sound one is touched,
        which keeps garbage collection away for another grace period.

        Returns:
            Whether the blob is new.
        """
        final = self.path(staged.digest)
        with storage_errors(final):
            if not final.parent.is_dir():
                final.parent.mkdir(parents=True, exist_ok=True)
                sync_folder(final.parent.parent)
                sync_folder(self.folder)
            try:
                claim(staged.path, final)
            except ConflictError:
                if final.stat().st_size == staged.size and Digest.of_file(final) == staged.digest:
                    os.utime(final)
                    return False
                staged.path.replace(final)
            sync_folder(final.parent)
        return True

    def delete(self, digest: Digest) -> None:
        """Remove a blob; nothing happens where there is none."""
        path = self.path(digest)
        with storage_errors(path):
            path.unlink(missing_ok=True)

    def __iter__(self) -> Iterator[Digest]:
        """The digests in the names of all blobs, ascending; files with other names are left out."""
        return (Digest(path.name) for path in self.files() if self._is_blob(path))

    def foreign(self) -> Iterator[Path]:
        """Files below the folder that no blob is called like."""
        return (path for path in self.files() if not self._is_blob(path))

    def files(self) -> Iterator[Path]:
        """Every file below the folder, in the order of names."""
        for folder, folders, files in os.walk(self.folder):
            folders.sort()
            yield from (Path(folder) / name for name in sorted(files))

    def _is_blob(self, path: Path) -> bool:
        return bool(_HEX.fullmatch(path.name)) and path == self.path(Digest(path.name)) and not path.is_symlink()
