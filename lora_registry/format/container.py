"""The strict profile of safetensors: framing, offsets and limits (spec section 6).

The layout of the bytes is safetensors' own: a little-endian u64 length, a JSON header, the data. The
reference library accepts duplicate names, empty tensors by the million and 90 MB of metadata; this reader
does not. It serves every safetensors file that loreg touches, foreign checkpoints too, so it knows nothing
of adapters.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Self

from lora_registry.adapter import Json, Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, NotFoundError
from lora_registry.findings import Finding
from lora_registry.format.canonical import JsonError, decode, encode, is_integers
from lora_registry.format.files import Opener, from_os_error, open_file
from lora_registry.format.limits import AXES, AXIS_LENGTH, HEADER_BYTES, TENSORS

METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one tensor lies: ``begin`` and ``end`` count bytes from the start of the data section."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Container:
    """An open safetensors file whose header has been checked and whose data has not been read.

    Tensors are windows of one memory map, which is of the very file whose header was read, whatever has taken
    its name since. The map lives as long as a window does, so that a container may be closed, or forgotten,
    while tensors of it are in use.

    Attributes:
        path: the file.
        header_bytes: the header as it stands in the file, padding included, without the length.
        metadata: the string map ``__metadata__``; empty where there is none.
        entries: name to place, in the order of the header.
        data_start: offset of the data section in the file.
    """

    def __init__(
        self, path: Path, header: bytes, metadata: dict[str, str], entries: dict[str, Entry], file: mmap.mmap
    ) -> None:
        self.path = path
        self.header_bytes = header
        self.metadata = metadata
        self.entries = entries
        self.data_start = 8 + len(header)
        self._map: memoryview | None = memoryview(file)

    def tensor(self, name: str) -> Tensor:
        """The tensor called ``name``, as a window of the file.

        Raises:
            KeyError: there is none of that name.
            ValueError: the container has been closed.
        """
        entry = self.entries[name]
        if self._map is None:
            raise ValueError(f"{self.path} has been closed")
        window = self._map[self.data_start + entry.begin : self.data_start + entry.end]
        return Tensor(entry.dtype, entry.shape, window)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._map = None


def open_container(path: Path, opener: Opener = open_file) -> Container:
    """Open a safetensors file: read its header and check it against the file's size.

    Args:
        path: the file.
        opener: opens it; the stream is asked for its size, the header, and its descriptor to map it by.

    Raises:
        NotFoundError: there is no such file.
        NotAllowedError: it may not be read.
        InvalidInputError: no regular file, or it breaks one of R-001 to R-008, or R-010; carries every finding.
    """
    header, data_bytes, file = _framed(path, opener)
    metadata, entries, findings = parse_header(header, data_bytes)
    if findings:
        raise InvalidInputError.from_findings(str(path), findings)
    return Container(path, header, metadata, entries, file)


def read_metadata(path: Path) -> dict[str, str]:
    """The string map of a file, whatever is wrong with its tensors: what it says it is, to tell what it breaks.

    Raises:
        NotFoundError: there is no such file.
        NotAllowedError: it may not be read.
        InvalidInputError: there is no header, or no string map in it, to be read.
    """
    header, data_bytes, _ = _framed(path, open_file)
    metadata, _, findings = parse_header(header, data_bytes)
    if findings and not metadata:
        raise InvalidInputError.from_findings(str(path), findings)
    return metadata


def _framed(path: Path, opener: Opener) -> tuple[bytes, int, mmap.mmap]:
    """The header of a file, the length of what follows it, and a map of the whole (R-001)."""
    try:
        with opener(path) as stream:
            size = os.fstat(stream.fileno()).st_size
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise _broken(path, "R-001", f"{len(prefix)} bytes are no safetensors file")
            if length > HEADER_BYTES:
                raise _broken(path, "R-001", f"a header of {length} bytes is beyond the limit of {HEADER_BYTES}")
            if length > size - 8:
                raise _broken(path, "R-001", f"truncated: the header needs {length} bytes, {size - 8} are left")
            header = stream.read(length)
            file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)  # reads nothing
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise InvalidInputError(f"{path}: a folder, not a safetensors file") from None
    except OSError as error:
        raise from_os_error(error, path) from error
    return header, size - 8 - length, file


def _broken(path: Path, rule: str, message: str) -> InvalidInputError:
    return InvalidInputError.from_findings(str(path), [Finding(rule, "header", message)])


def parse_header(header: bytes, data_bytes: int) -> tuple[dict[str, str], dict[str, Entry], list[Finding]]:
    """Parse and check a header against ``data_bytes``, the length of what follows it.

    Returns:
        The metadata, the entries that are sound, and what is wrong.
    """
    if not header.startswith(b"{"):
        return {}, {}, [Finding("R-002", "header", "does not begin with '{'")]
    try:
        document = decode(header)
    except JsonError as error:
        return {}, {}, [Finding("R-002", "header", str(error))]
    if not isinstance(document, dict):
        return {}, {}, [Finding("R-002", "header", "is no JSON object")]
    metadata, findings = _metadata(document.pop(METADATA, {}))
    if len(document) > TENSORS:
        return metadata, {}, [*findings, Finding("R-010", "header", f"{len(document)} tensors, at most {TENSORS}")]
    entries: dict[str, Entry] = {}
    for name, record in document.items():
        entry = _entry(name, record)
        if isinstance(entry, Finding):
            findings.append(entry)
        else:
            entries[name] = entry
    if not findings:
        findings.extend(_coverage(entries, data_bytes))
    return metadata, entries, findings


def _metadata(record: Json) -> tuple[dict[str, str], list[Finding]]:
    if not isinstance(record, dict) or not all(isinstance(value, str) for value in record.values()):
        return {}, [Finding("R-004", METADATA, "is not a map from strings to strings")]
    return {key: str(value) for key, value in record.items()}, []


def _entry(name: str, record: Json) -> Entry | Finding:
    """Where a tensor lies, or the first thing that is wrong with its record."""
    if not isinstance(record, dict) or set(record) != _FIELDS:
        return Finding("R-004", name, "is not a record of exactly dtype, shape and data_offsets")
    dtype, shape, offsets = record["dtype"], record["shape"], record["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        return Finding("R-005", name, f"unknown dtype {dtype!r}")
    if not is_integers(shape) or len(shape) > AXES or not all(0 <= length <= AXIS_LENGTH for length in shape):
        return Finding("R-006", name, f"shape is not a list of at most {AXES} lengths")
    if not is_integers(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        return Finding("R-007", name, "data_offsets are not two ascending integers")
    begin, end = offsets
    size = prod(shape) * DTYPES[dtype].size
    if end - begin != size:
        return Finding("R-007", name, f"{dtype} {shape} takes {size} bytes, data_offsets span {end - begin}")
    return Entry(dtype, tuple(shape), begin, end)


def _coverage(entries: Mapping[str, Entry], data_bytes: int) -> list[Finding]:
    """R-003 and R-008: the tensors cover the data section exactly, without overlap or hole."""
    findings = []
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            what = "overlaps the tensor before it" if entry.begin < position else "leaves a hole before it"
            findings.append(Finding("R-008", name, f"{what}: begins at {entry.begin}, not at {position}"))
        position = max(position, entry.end)
    if not findings and position != data_bytes:
        what = "truncated" if position > data_bytes else "bytes that no tensor takes"
        findings.append(Finding("R-003", "data", f"{what}: the tensors need {position} bytes, {data_bytes} are there"))
    return findings


def place(tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Lay tensors out without holes: wider elements first, so that each is aligned to its own size, then by name.

    Args:
        tensors: name to (dtype, shape).
    """
    entries: dict[str, Entry] = {}
    position = 0
    for name, (dtype, shape) in sorted(tensors.items(), key=lambda item: (-DTYPES[item[1][0]].size, item[0])):
        end = position + prod(shape) * DTYPES[dtype].size
        entries[name] = Entry(dtype, shape, position, end)
        position = end
    return entries


def encode_header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    """The length and the canonical header, padded with spaces so that the data begins at a multiple of 8."""
    document: dict[str, Json] = {
        name: {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [entry.begin, entry.end]}
        for name, entry in entries.items()
    }
    if metadata:
        document[METADATA] = dict(metadata)
    header = encode(document)
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def encode_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterable[bytes | memoryview]:
    """A whole safetensors file as chunks: equal tensors and metadata give equal bytes."""
    entries = place({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    yield encode_header(entries, metadata)
    for name in entries:
        yield tensors[name].data
