"""Where the parts of a registry lie in its folder (spec/registry.md section 1)."""

from __future__ import annotations

import re
from pathlib import Path

from lora_registry.errors import ConflictError, IntegrityError, NotAllowedError
from lora_registry.format.canonical import JsonError, decode, encode
from lora_registry.format.files import atomic_write, open_file, storage_errors, sync_folder

STORE_VERSION = 1
"""Version of the layout on disk; the catalogue's own version is in ``migrations``."""

_FORMAT = "loreg store"
_MARKER_BYTES = 4096  # far more than a marker has
_TEMPORARY = re.compile(r"\..+\.tmp", re.ASCII)


class Layout:
    """The names inside a registry's folder.

    Attributes:
        root: the folder.
        marker: says that the folder is a registry, and in which version of the layout.
        lock: the file that ``flock`` is taken on; empty.
        database: the catalogue, an SQLite database.
        journal: the event log as lines of JSON.
        blobs: content-addressed files.
        temporary: files that are being written, on the same file system as ``blobs``.
        backups: databases as they were before a migration or a reindex.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.marker = root / "loreg-store.json"
        self.lock = root / "lock"
        self.database = root / "catalogue.sqlite"
        self.journal = root / "journal.jsonl"
        self.blobs = root / "blobs"
        self.temporary = root / "tmp"
        self.backups = root / "backups"

    @property
    def database_side_files(self) -> tuple[Path, ...]:
        """What SQLite may keep beside its database: the rollback journal, the write-ahead log and its index."""
        return tuple(self.database.with_name(self.database.name + suffix) for suffix in ("-journal", "-wal", "-shm"))

    def is_own(self, name: str) -> bool:
        """Whether a file or folder called ``name`` in the root is one of loreg's."""
        own = {self.marker, self.lock, self.database, self.journal, self.blobs, self.temporary, self.backups}
        return name in {path.name for path in (*own, *self.database_side_files)} or bool(_TEMPORARY.fullmatch(name))

    def exists(self) -> bool:
        """Whether there is a registry here, of a version that this code reads.

        Raises:
            ConflictError: a newer loreg laid it out.
            IntegrityError: the marker cannot be understood.
            NotAllowedError: there is a file instead of a folder.
        """
        with storage_errors(self.marker):
            try:
                with open_file(self.marker) as stream:
                    text = stream.read(_MARKER_BYTES)
            except FileNotFoundError:
                return False
            except NotADirectoryError:
                raise NotAllowedError(f"{self.root} is no folder, so it is no registry") from None
        version = _version(text)
        if version is None:
            raise IntegrityError(f"{self.marker} does not say which version of the layout this is")
        if version != STORE_VERSION:
            raise ConflictError(
                f"{self.root} has layout version {version}, this loreg reads version {STORE_VERSION}: upgrade loreg"
            )
        return True

    def create(self) -> None:
        """Make the folder and everything in it but the database; safe to call again, and by several at once.

        Raises:
            NotAllowedError: the folder holds something else, or may not be written.
        """
        if self.exists():
            return
        with storage_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            for entry in sorted(self.root.iterdir()):
                if not self.is_own(entry.name):
                    raise NotAllowedError(f"{self.root} is no registry and holds other things, such as {entry.name!r}")
            for folder in (self.blobs, self.temporary, self.backups):
                folder.mkdir(exist_ok=True)
            self.lock.touch()
            sync_folder(self.root)
            with atomic_write(self.marker, overwrite=True) as stream:
                stream.write(encode({"format": _FORMAT, "version": STORE_VERSION}) + b"\n")
            sync_folder(self.root.parent)


def _version(marker: bytes) -> int | None:
    """The version of the layout that a marker states; None where it is no marker, or states no whole number."""
    try:
        said = decode(marker)
    except JsonError:
        return None
    if not isinstance(said, dict) or said.get("format") != _FORMAT:
        return None
    version = said.get("version")
    return version if type(version) is int else None  # neither true nor 1.0, which equal 1
