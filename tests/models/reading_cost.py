"""What opening a file costs: bytes that the system hands over, and bytes that a memory map brings into memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO


class Tracer:
    """Opens files as :func:`lora_registry.format.files.open_file` does, and counts the bytes that are read.

    What a memory map brings in passes no file object: :func:`resident` measures that.
    """

    def __init__(self) -> None:
        self.bytes_read = 0

    def __call__(self, path: Path) -> IO[bytes]:
        return io.BufferedReader(_TracedFile(path, self))


class _TracedFile(io.FileIO):
    """The file below the buffer, so that what is read ahead into the buffer counts."""

    def __init__(self, path: Path, tracer: Tracer) -> None:
        super().__init__(path)
        self._tracer = tracer

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = super().readinto(buffer)
        self._tracer.bytes_read += count
        return count

    def readall(self) -> bytes:
        data = super().readall()
        self._tracer.bytes_read += len(data)
        return data


def resident(path: Path) -> int:
    """Bytes of this process's memory maps of ``path`` that it has touched, as Linux counts them."""
    total, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
