"""What a program writes to its standard error: read as it comes, so that it never waits, and the last of it kept."""

from __future__ import annotations

import os
from threading import Thread
from typing import IO

LINES = 5
"""Lines that are kept to be shown."""

_KEPT = 4096  # bytes that are kept; a program is free to write without end
_PATIENCE = 1.0  # seconds for what was written before the end to be read


class Tail:
    """The last lines of a stream, which is read until it ends.

    Args:
        stream: the read end of a pipe; closed when its end is reached.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._kept = b""
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def lines(self) -> tuple[str, ...]:
        """The last lines of a stream that ends about now."""
        self._reader.join(_PATIENCE)
        return tuple(self._kept.decode(errors="replace").splitlines()[-LINES:])

    def _read(self) -> None:
        with self._stream as stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                self._kept = (self._kept + chunk)[-_KEPT:]
