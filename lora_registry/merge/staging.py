"""The folder in which the output is made, beside its final place, and how it takes its name at the end.

Its name follows from that of the output, so that a merge that was killed is found again. A lock, which the kernel
lets go of when its holder dies, keeps two merges from one place. After an error the folder is gone; after a kill
it is there until the merge is resumed, or begun anew.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_registry.errors import ConflictError, NotFoundError
from lora_registry.format.files import sync_folder
from lora_registry.merge.journal import NAME


class Staging:
    """A folder ``.<output>.merging`` with what is made, its journal, and what it replaces.

    Attributes:
        folder: the folder.
        files: the files of the output, under their final names.
        journal: the file of :mod:`~lora_registry.merge.journal`.
        begun: whether this process has written something; until then, a refusal leaves all as it was.
    """

    def __init__(self, out: Path) -> None:
        self.folder = folder_for(out)
        self.files = self.folder / "files"
        self.journal = self.folder / NAME
        self.begun = False
        self._out = out

    def take_folder(self) -> None:
        """Give the folder of files the name of the output, and put away what had it."""
        for folder in [*(path for path in self.files.rglob("*") if path.is_dir()), self.files]:
            sync_folder(folder)
        if self._out.is_dir():
            self._out.rename(self.folder / "replaced")
        self.files.rename(self._out)
        sync_folder(self._out.parent)

    def take_files(self, names: dict[str, Path]) -> None:
        """Give files their final names, in the order given."""
        for name, path in names.items():
            (self.files / name).replace(path)
        sync_folder(self._out.parent)


def folder_for(out: Path) -> Path:
    """Where the merge into ``out`` is made."""
    return out.with_name(f".{out.name}.merging")


@contextmanager
def staging(out: Path, *, resume: bool) -> Iterator[Staging]:
    """The staging folder of ``out``, which is this process's alone until the block ends; then it is gone.

    Args:
        out: the output.
        resume: keep what a killed merge left there; otherwise it is removed first.

    Raises:
        ConflictError: another merge is being written there.
        NotFoundError: there is no folder to put it in; or nothing to resume.
    """
    if not out.parent.is_dir():
        raise NotFoundError(f"no such folder: {out.parent}")
    place = Staging(out)
    if resume and not place.folder.is_dir():
        raise NotFoundError(f"there is no interrupted merge into {out} to resume")
    place.folder.mkdir(exist_ok=True)
    lock = os.open(place.folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another merge into {out} is under way") from None
        try:
            if not resume:
                _empty(place.folder)
                place.begun = True
            place.files.mkdir(exist_ok=True)
            yield place
        finally:
            if place.begun:
                shutil.rmtree(place.folder, ignore_errors=True)
    finally:
        os.close(lock)


def _empty(folder: Path) -> None:
    """Remove what a killed merge left: its journal first, which must never speak of blocks that are gone."""
    (folder / NAME).unlink(missing_ok=True)
    sync_folder(folder)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
