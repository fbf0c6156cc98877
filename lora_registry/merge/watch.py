"""Whether the files of the base are still those that the merge began with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lora_registry.adapter import Json
from lora_registry.errors import ConflictError


class Watch:
    """Size, time of the last change, device and inode of some files, as they are now.

    Args:
        paths: the files.

    Raises:
        OSError: one is not there.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._seen = {path: _state(path) for path in paths}

    def require_unchanged(self) -> None:
        """Refuse to go on if a file was replaced or written to.

        Raises:
            ConflictError: one was, or is gone.
        """
        for path, before in self._seen.items():
            try:
                now = _state(path)
            except OSError:
                now = []
            if now != before:
                raise ConflictError(f"{path} changed while it was being merged; nothing was written")

    def to_json(self) -> Json:
        """The states by file name, for the journal of a merge."""
        return {path.name: list(state) for path, state in self._seen.items()}


def _state(path: Path) -> list[Json]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_dev, found.st_ino]
