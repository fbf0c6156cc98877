"""The header of a reverse patch (``spec/merging.md``, section 6): which bytes of the base come from where.

A patch says how each file of the base is put together from runs: bytes of the merged files as they are, elements
of a merged tensor plus a small difference, or bytes that the patch holds itself. Differences are taken of the
bits, so that what comes back is the base and not something near it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Literal, cast

from lora_registry.adapter import Json
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.canonical import JsonError, decode, encode, is_integers
from lora_registry.merge.receipt import FileRecord
from lora_registry.merge.recorded import parse_records

MAGIC = b"loregund"
VERSION = 1
BLOCK = 1 << 20
"""Bytes of the base that a block holds, but for the last of a run."""
HEADER = 1 << 26
"""Bytes of a header, at most."""
Op = Literal["copy", "difference", "literal"]


@dataclass(frozen=True, slots=True)
class Run:
    """How the next bytes of a base file come about.

    Attributes:
        op: ``copy`` takes bytes of a merged file; ``difference`` takes elements of one and adds what the patch
            holds; ``literal`` takes what the patch holds.
        length: bytes of the base file.
        file: name of the merged file.
        offset: where its bytes begin.
        source: element type in the merged file.
        target: element type in the base file.
    """

    op: Op
    length: int
    file: str = ""
    offset: int = 0
    source: str = ""
    target: str = ""

    @property
    def read(self) -> int:
        """Bytes of the merged file that the run takes."""
        if self.op == "difference":
            return self.length // DTYPES[self.target].size * DTYPES[self.source].size
        return self.length if self.op == "copy" else 0

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of base bytes, counted from the start of the run, one for each block."""
        for start in range(0, self.length, BLOCK):
            yield start, min(start + BLOCK, self.length)

    def to_json(self) -> dict[str, Json]:
        """The run as a JSON object."""
        record: dict[str, Json] = {"op": self.op, "length": self.length}
        if self.op != "literal":
            record |= {"file": self.file, "offset": self.offset}
        if self.op == "difference":
            record |= {"from": self.source, "to": self.target}
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class UndoHeader:
    """What a patch says about itself.

    Attributes:
        folder: whether the base is a folder, and not one file.
        merged: the files of the merged checkpoint that the patch takes bytes from.
        base: the files that it restores.
        runs: name of a base file to how it is put together.
    """

    folder: bool
    merged: tuple[FileRecord, ...]
    base: tuple[FileRecord, ...]
    runs: Mapping[str, tuple[Run, ...]]

    def encode(self) -> bytes:
        """Everything before the first block: magic, length, canonical JSON."""
        document: dict[str, Json] = {
            "loreg_undo": VERSION,
            "folder": self.folder,
            "merged": [record.to_json() for record in sorted(self.merged)],
            "base": [record.to_json() for record in sorted(self.base)],
            "runs": {name: [run.to_json() for run in runs] for name, runs in self.runs.items()},
        }
        text = encode(document)
        return MAGIC + len(text).to_bytes(8, "little") + text


def read_header(stream: IO[bytes], name: str) -> UndoHeader:
    """Read and check everything before the first block.

    Raises:
        InvalidInputError: it breaks a rule of the format.
        UnsupportedError: it is of another version.
    """
    head = stream.read(len(MAGIC) + 8)
    if not head.startswith(MAGIC) or len(head) < len(MAGIC) + 8:
        raise InvalidInputError(f"{name}: no reverse patch (U-001)")
    length = int.from_bytes(head[len(MAGIC) :], "little")
    if length > HEADER:
        raise InvalidInputError(f"{name}: a header of {length} bytes (U-001)")
    text = stream.read(length)
    if len(text) < length:
        raise InvalidInputError(f"{name}: truncated in its header (U-001)")
    try:
        said = decode(text)
    except JsonError as error:
        raise InvalidInputError(f"{name}: {error} (U-001)") from None
    if not isinstance(said, dict) or "loreg_undo" not in said:
        raise InvalidInputError(f"{name}: no reverse patch (U-001)")
    if said["loreg_undo"] != VERSION:
        raise UnsupportedError(f"{name}: a reverse patch of version {said['loreg_undo']!r}, not {VERSION}")
    return _header(said, name)


def _header(said: Mapping[str, Json], name: str) -> UndoHeader:
    runs, folder = said.get("runs"), said.get("folder")
    if set(said) != {"loreg_undo", "folder", "merged", "base", "runs"} or not isinstance(folder, bool):
        raise InvalidInputError(f"{name}: other fields than a reverse patch has (U-001)")
    merged = parse_records(said["merged"], f"{name}: merged")
    base = parse_records(said["base"], f"{name}: base")
    if not isinstance(runs, dict) or set(runs) != {record.name for record in base} or (not folder and len(base) != 1):
        raise InvalidInputError(f"{name}: runs of other files than the base's (U-002)")
    sizes = {record.name: record.size for record in merged}
    parsed = {}
    for record in base:
        listed = runs[record.name]
        if not isinstance(listed, list):
            raise InvalidInputError(f"{name}: {record.name} has no runs (U-002)")
        parsed[record.name] = tuple(_run(each, sizes, f"{name}: {record.name}") for each in listed)
        if sum(run.length for run in parsed[record.name]) != record.size:
            raise InvalidInputError(f"{name}: the runs of {record.name} do not add up to its size (U-002)")
    return UndoHeader(folder=folder, merged=merged, base=base, runs=parsed)


_FIELDS = {
    "copy": {"op", "length", "file", "offset"},
    "difference": {"op", "length", "file", "offset", "from", "to"},
    "literal": {"op", "length"},
}


def _run(said: Json, sizes: Mapping[str, int], what: str) -> Run:
    if not isinstance(said, dict) or set(said) != _FIELDS.get(str(said.get("op"))):
        raise InvalidInputError(f"{what}: a run with other fields than it has (U-002)")
    numbers = [said["length"], said.get("offset", 0)]
    if not is_integers(numbers) or numbers[0] < 1 or numbers[1] < 0:
        raise InvalidInputError(f"{what}: a run without length or offset (U-002)")
    run = Run(
        cast("Op", said["op"]),
        numbers[0],
        str(said.get("file", "")),
        numbers[1],
        str(said.get("from", "")),
        str(said.get("to", "")),
    )
    if run.op == "difference" and not _convertible(run):
        raise InvalidInputError(f"{what}: a difference of {run.source} and {run.target} in {run.length} bytes (U-003)")
    if run.op != "literal" and run.offset + run.read > sizes.get(run.file, -1):
        raise InvalidInputError(f"{what}: a run beyond the end of {run.file!r} (U-002)")
    return run


def _convertible(run: Run) -> bool:
    if not {run.source, run.target} <= DTYPES.keys() or run.length % DTYPES[run.target].size:
        return False
    return run.source == run.target or all(DTYPES[name].is_wide_float for name in (run.source, run.target))
