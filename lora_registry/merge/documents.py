"""The small files of the output: the companions of the weights, the configuration and the index, kept true."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.dtypes import BY_TORCH, DTYPES
from lora_registry.format.files import copy_bytes
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.pickled import safe_name
from lora_registry.merge.bases.ties import untied
from lora_registry.merge.companions import Companions
from lora_registry.merge.dtype_rules import DtypeRules
from lora_registry.merge.plan import Plan
from lora_registry.merge.receipt import FileRecord

_INDEX = ".index.json"
_DTYPE_KEYS = ("dtype", "torch_dtype")
"""What transformers calls, and called, the type in which a model is loaded."""


def write_documents(
    base: Checkpoint, plan: Plan, others: Companions, dtypes: DtypeRules, folder: Path
) -> Iterator[tuple[FileRecord, FileRecord]]:
    """Copy the companions; rewrite the configuration and the index where the merge made them untrue.

    Yields:
        The record of each file of the base, and that of the new one.
    """
    for name in others.copied:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        config = _config(base, plan, dtypes) if name == "config.json" else base.config
        if config != base.config:
            yield _rewrite(base.path / name, folder / name, config)
        else:
            yield _copy(base.path / name, folder / name, name)
    if base.index is not None:
        target = folder / (safe_name(base.index.name.removesuffix(_INDEX)) + _INDEX)
        if base.is_pickled or dtypes.rules or not all(file.same_layout for file in plan.files):
            yield _rewrite(base.index, target, _index(base.index, plan))
        else:
            yield _copy(base.index, target, target.name)


def dtype_notes(base: Checkpoint, plan: Plan, dtypes: DtypeRules) -> tuple[str, ...]:
    """What a configuration cannot say: that the output has several types of weights."""
    types = _float_types(plan)
    said = sorted({value for key, value in base.config.items() if key in _DTYPE_KEYS and isinstance(value, str)})
    if not dtypes.rules or len(types) == 1 or not said:
        return ()
    widest = max(types, key=lambda name: DTYPES[name].size)
    note = (
        f"config.json still says {said[0]}, and transformers converts the weights to it: load the model with "
        f"dtype={DTYPES[widest].torch} to use them as they are written"
    )
    return (note,)


def _float_types(plan: Plan) -> set[str]:
    found = {part.entry.dtype for file in plan.files for part in file.parts}
    return {name for name in found if DTYPES[name].is_wide_float}


def _config(base: Checkpoint, plan: Plan, dtypes: DtypeRules) -> dict[str, Json]:
    config = untied(base.written_config) if plan.untied else dict(base.written_config)
    types = _float_types(plan)
    return _with_dtype(config, DTYPES[types.pop()].torch) if dtypes.rules and len(types) == 1 else config


def _with_dtype(config: Mapping[str, Json], torch: str) -> dict[str, Json]:
    """A copy that names the type ``torch`` wherever it, or the part for one modality, names a type."""
    result: dict[str, Json] = {}
    for key, value in config.items():
        if key in _DTYPE_KEYS and value in BY_TORCH:
            result[key] = torch
        elif key.endswith("_config") and isinstance(value, Mapping):
            result[key] = _with_dtype(value, torch)
        else:
            result[key] = value
    return result


def _index(path: Path, plan: Plan) -> dict[str, Json]:
    index: dict[str, Json] = json.loads(path.read_bytes())
    metadata = index.get("metadata")
    total = sum(part.entry.end - part.entry.begin for file in plan.files for part in file.parts)
    index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
    index["weight_map"] = {part.name: file.name for file in plan.files for part in file.parts}
    return index


def _rewrite(source: Path, target: Path, document: Mapping[str, Json]) -> tuple[FileRecord, FileRecord]:
    """Write ``document`` in the way transformers writes its JSON files."""
    before = source.read_bytes()
    after = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
    with target.open("wb") as stream:  # a merge that was killed may have begun it
        stream.write(after)
        stream.flush()
        os.fsync(stream.fileno())
    return FileRecord(source.name, len(before), Digest.of(before)), FileRecord(
        target.name, len(after), Digest.of(after)
    )


def _copy(source: Path, target: Path, name: str) -> tuple[FileRecord, FileRecord]:
    """Copy a file and make the copy durable; the file system shares blocks where it can."""
    with source.open("rb") as reader, target.open("wb") as writer:
        size = os.fstat(reader.fileno()).st_size
        copy_bytes(reader, writer)
        writer.flush()
        os.fsync(writer.fileno())
    record = FileRecord(name, size, Digest.of_file(source))
    return record, record
