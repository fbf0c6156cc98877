"""Receipts read back, and files held against what they say."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError, InvalidInputError, NotFoundError, UnsupportedError
from lora_registry.format.canonical import is_integers
from lora_registry.format.files import open_file
from lora_registry.merge.receipt import RECEIPT_VERSION, FileRecord
from lora_registry.text import plural

_LIMIT = 1 << 28  # bytes of a receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """The parts of a receipt by which a merge is undone or done again.

    Attributes:
        tool: name and version of the program.
        kind: ``safetensors``, ``gguf`` or ``onnx``.
        adapter: content digest of what was merged.
        options: every option that shaped the output.
        inputs: the files of the base.
        outputs: the files that were written.
    """

    tool: str
    kind: str
    adapter: str
    options: Mapping[str, Json]
    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]


def read_receipt(path: Path) -> Recorded:
    """Read the receipt in ``path``.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: it is none.
        UnsupportedError: it is of another version, or of a merge without digests.
    """
    try:
        with open_file(path) as stream:
            if os.fstat(stream.fileno()).st_size > _LIMIT:
                raise InvalidInputError(f"{path}: too large for a receipt")
            text = stream.read()
        # Not the strict reader: its limit on integers is one on figures of a receipt too, which nobody reads here.
        said = json.loads(text)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"no receipt: {path}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"{path}: no receipt: {error}") from None
    if not isinstance(said, dict) or "loreg_receipt" not in said:
        raise InvalidInputError(f"{path}: no receipt of a merge")
    if said["loreg_receipt"] != RECEIPT_VERSION:
        raise UnsupportedError(f"{path}: a receipt of version {said['loreg_receipt']!r}, not {RECEIPT_VERSION}")
    options, tool, kind, adapter = (said.get(key) for key in ("options", "tool", "kind", "adapter"))
    if not isinstance(options, dict) or not all(isinstance(each, str) for each in (tool, kind, adapter)):
        raise InvalidInputError(f"{path}: a receipt without options, tool, kind or adapter")
    return Recorded(
        tool=str(tool),
        kind=str(kind),
        adapter=str(adapter),
        options=options,
        inputs=parse_records(said.get("inputs"), f"{path}: inputs"),
        outputs=parse_records(said.get("outputs"), f"{path}: outputs"),
    )


def parse_records(said: Json, what: str) -> tuple[FileRecord, ...]:
    """The file records of a list, each name once, and none that leads out of its folder.

    Args:
        said: the list.
        what: it is, for messages.

    Raises:
        InvalidInputError: it is no such list.
        UnsupportedError: a record has no digest.
    """
    if not isinstance(said, list) or not said:
        raise InvalidInputError(f"{what}: no list of files")
    records = tuple(_record(each, what) for each in said)
    names = {record.name for record in records}
    if len(names) != len(records) or any(
        str(above) in names for name in names for above in PurePosixPath(name).parents
    ):
        raise InvalidInputError(f"{what}: a name is there twice, as a file or as a folder")
    return records


def _record(said: Json, what: str) -> FileRecord:
    if not isinstance(said, dict) or not {"name", "size"} <= said.keys():
        raise InvalidInputError(f"{what}: a file without name and size")
    name, size, digest = said["name"], said["size"], said.get("digest")
    if not isinstance(name, str) or not is_safe(name):
        raise InvalidInputError(f"{what}: {name!r} is no name of a file in a folder")
    if not is_integers([size]) or cast("int", size) < 0:
        raise InvalidInputError(f"{what}: {name} has no size")
    if digest is None:
        raise UnsupportedError(f"{what}: {name} has no digest, so that nothing can be checked by it")
    if not isinstance(digest, str) or not Digest.is_well_formed(digest):
        raise InvalidInputError(f"{what}: {name} has no sha256 digest")
    return FileRecord(name, cast("int", size), Digest.parse(digest))


def is_safe(name: str) -> bool:
    """Whether ``name`` is a relative path with ``/`` that stays in its folder, in its shortest spelling."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") for part in parts) and not set(name) & {"\\", "\0", ":"} and len(name) < 1024


def located(path: Path, records: Iterable[FileRecord]) -> dict[str, Path]:
    """Where the files of ``records`` lie: in the folder ``path``, or the one file that ``path`` is.

    Raises:
        IntegrityError: ``path`` is a file, and the records are of several.
    """
    names = [record.name for record in records]
    if path.is_dir():
        return {name: path.joinpath(*name.split("/")) for name in names}
    if len(names) != 1:
        raise IntegrityError(f"{path} is one file, and there were {len(names)}")
    return {names[0]: path}


def require_files(path: Path, records: Iterable[FileRecord], what: str) -> dict[str, Path]:
    """Hold every file against its record: the sizes of all, then the digests of all.

    Args:
        path: the folder, or the file.
        records: what is said of them.
        what: who says it, for the message.

    Returns:
        Where they lie.

    Raises:
        NotFoundError: there is nothing at ``path``.
        IntegrityError: a file is missing or another one.
    """
    if not path.exists():
        raise NotFoundError(f"no such file or folder: {path}")
    known = {record.name: record for record in records}
    places = located(path, known.values())
    for name, place in places.items():
        if not place.is_file():
            raise IntegrityError(f"{path}: {name} is missing, which {what} names")
        if place.stat().st_size != known[name].size:
            raise IntegrityError(f"{place}: has {place.stat().st_size:,} bytes, and {known[name].size:,} in {what}")
    with ThreadPoolExecutor(2) as threads:  # hashing lets go of the interpreter lock
        digests = dict(zip(places, threads.map(Digest.of_file, places.values()), strict=True))
    wrong = [name for name in places if digests[name] != known[name].digest]
    if wrong:
        more = f", nor are {plural(len(wrong) - 1, 'other file')}" if len(wrong) > 1 else ""
        raise IntegrityError(f"{places[wrong[0]]}: not the file of {what}{more}")
    return places
