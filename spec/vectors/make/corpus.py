"""All vectors, as the files of the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator

import canonical_cases
import edit_cases
import invalid_document
import invalid_framing
import invalid_target
import limits
import merge_cases
import probe_cases
import rounding_cases
import type_cases
import valid
import valid_fields
from vector import Vector, everywhere

VERSION = "1.0.0"
FORMAT = "1.0"
INDEX = "index.json"
LARGEST = 4096
"""Bytes of a vector's file, at most."""

_BASE = "merge/linear-out-in.base.safetensors"
_TABLES = (
    valid.vectors,
    valid_fields.vectors,
    invalid_framing.vectors,
    invalid_document.vectors,
    invalid_target.vectors,
    limits.vectors,
    canonical_cases.vectors,
    edit_cases.vectors,
    merge_cases.vectors,
    rounding_cases.vectors,
    type_cases.vectors,
    probe_cases.vectors,
)


def vectors() -> Iterator[Vector]:
    """Every vector, in the order of the index; the first of each invalid kind is refused by all operations."""
    seen: set[tuple[str, ...]] = set()
    for vector in (vector for table in _TABLES for vector in table()):
        broken = tuple(vector.expect["validate"]["rules"])
        first = bool(broken) and broken not in seen
        seen.add(broken)
        yield everywhere(vector, _BASE) if first else vector


def files() -> dict[str, bytes]:
    """Name, relative to the folder, to bytes; the index included.

    Raises:
        ValueError: two vectors have one name, or a file is too large.
    """
    result: dict[str, bytes] = {}
    entries = []
    for vector in vectors():
        own = {} if vector.data is None else {vector.file: vector.data}
        for name, data in {**own, **vector.files}.items():
            if name in result:
                raise ValueError(f"two vectors have the file {name}")
            if len(data) > LARGEST:
                raise ValueError(f"{name} has {len(data)} bytes")
            result[name] = data
        entries.append(vector.entry())
    ids = [entry["id"] for entry in entries]
    if len(set(ids)) != len(ids):
        raise ValueError(f"two vectors have one id: {sorted(i for i in set(ids) if ids.count(i) > 1)}")
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    head = f'{{"version": "{VERSION}", "format": "{FORMAT}", "vectors": [\n'
    result[INDEX] = f"{head}{lines}\n]}}\n".encode()
    return result
