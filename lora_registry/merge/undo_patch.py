"""Making the reverse patch of a merge, from the base and what was merged, by whatever program."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import NotAllowedError
from lora_registry.format.files import atomic_write
from lora_registry.merge.base import Checkpoint, open_base
from lora_registry.merge.companions import find_companions
from lora_registry.merge.receipt import FileRecord
from lora_registry.merge.undo_block import difference, pack
from lora_registry.merge.undo_header import Run, UndoHeader
from lora_registry.merge.untouched import same_bytes
from lora_registry.ops.arrays import Array, numpy_dtype
from lora_registry.progress import Counted, Progress

_UNDER_WAY = 6  # blocks that are being compressed, at most


@dataclass(frozen=True, slots=True)
class UndoSize:
    """How large a patch became.

    Attributes:
        patch: bytes of the patch.
        changed: bytes of the base that the merged files do not hold as they are.
        base: bytes of the base.
    """

    patch: int
    changed: int
    base: int


def write_undo(
    base_path: str | Path,
    merged_path: str | Path,
    patch: Path,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> UndoSize:
    """Write the patch that turns a merged checkpoint back into its base, byte by byte.

    Args:
        base_path: the base, as it is.
        merged_path: what was made of it; a receipt is not needed.
        patch: the file to write.
        overwrite: ``patch`` may be replaced.
        progress: called with the bytes of the base done and all.

    Raises:
        NotFoundError: a checkpoint, or the folder of ``patch``, does not exist.
        InvalidInputError: a checkpoint is broken.
        NotAllowedError: ``patch`` lies in one of the checkpoints.
        ConflictError: ``patch`` exists.
    """
    base, merged = open_base(base_path), open_base(merged_path)
    for model in (base, merged):
        if model.is_folder and model.path.resolve() in patch.resolve().parents:
            raise NotAllowedError(f"{patch} lies in {model.path}, which is not changed; choose another place")
    runs = {name: _runs(path, name, base, merged) for name, path in _files(base).items()}
    places = _files(merged)
    used = sorted({run.file for each in runs.values() for run in each if run.op != "literal"})
    header = UndoHeader(
        folder=base.is_folder,
        merged=_records({name: places[name] for name in used or sorted(places)[:1]}),
        base=_records(_files(base)),
        runs={name: tuple(each) for name, each in runs.items()},
    )
    total = sum(record.size for record in header.base)
    done = Counted(progress, total)
    with atomic_write(patch, overwrite=overwrite) as stream:
        stream.write(header.encode())
        for name, path in sorted(_files(base).items()):
            for block in _packed(path, runs[name], places, done):
                stream.write(block)
        size = stream.tell()
    changed = sum(run.length for each in runs.values() for run in each if run.op != "copy")
    return UndoSize(size, changed, total)


def _files(model: Checkpoint) -> dict[str, Path]:
    """Every file that belongs to a checkpoint, by its name in the folder."""
    if not model.is_folder:
        return {model.path.name: model.path}
    names = [*model.shards, *([model.index.name] if model.index else []), *find_companions(model).copied]
    return {name: model.path / name for name in names}


def _records(files: dict[str, Path]) -> tuple[FileRecord, ...]:
    with ThreadPoolExecutor(2) as threads:
        digests = list(threads.map(Digest.of_file, files.values()))
    sizes = [path.stat().st_size for path in files.values()]
    return tuple(FileRecord(*record) for record in zip(files, sizes, digests, strict=True))


def _runs(path: Path, name: str, base: Checkpoint, merged: Checkpoint) -> list[Run]:
    size = path.stat().st_size
    if name not in base.shards:
        same = _files(merged).get(name)
        if same is not None and same.stat().st_size == size > 0 and same.read_bytes() == path.read_bytes():
            return [Run("copy", size, name)]
        return [Run("literal", size)] if size else []
    container = base.shards[name]
    runs = [_head(container.path, container.data_start, merged, name)]
    for tensor, entry in sorted(container.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin < entry.end:
            runs.append(_tensor(tensor, base, merged))
    return list(_joined(runs))


def _head(path: Path, length: int, merged: Checkpoint, name: str) -> Run:
    file = name if name in merged.shards else min(merged.shards)
    with path.open("rb") as one, merged.shards[file].path.open("rb") as other:
        if one.read(length) == other.read(length):
            return Run("copy", length, file)
    return Run("literal", length)


def _tensor(name: str, base: Checkpoint, merged: Checkpoint) -> Run:
    """The run of one tensor: as it is in the merged files, or near it, or new."""
    entry = base.entry(name)
    length = entry.end - entry.begin
    if name not in merged.places or merged.shape(name) != entry.shape:
        return Run("literal", length)
    file = merged.places[name]
    own = merged.entry(name)
    offset = merged.shards[file].data_start + own.begin
    if own.dtype == entry.dtype:
        if same_bytes(base.array(name), merged.array(name)):
            return Run("copy", length, file, offset)
    elif not (DTYPES[own.dtype].is_wide_float and DTYPES[entry.dtype].is_wide_float):
        return Run("literal", length)
    return Run("difference", length, file, offset, own.dtype, entry.dtype)


def _joined(runs: list[Run]) -> Iterator[Run]:
    """Runs that copy from one place to the next become one."""
    last: Run | None = None
    for run in runs:
        if (
            last is not None
            and last.op == run.op == "copy"
            and (last.file, last.offset + last.length)
            == (
                run.file,
                run.offset,
            )
        ):
            last = Run("copy", last.length + run.length, last.file, last.offset)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _packed(path: Path, runs: list[Run], places: dict[str, Path], done: Counted) -> Iterator[bytes]:
    """The blocks of a file in their order, a few of them compressed at a time, in threads."""
    if not runs:
        return
    source = np.memmap(path, np.uint8, "r")
    waiting: deque[Future[bytes]] = deque()
    position = 0
    with ThreadPoolExecutor(2) as threads:
        for run in runs:
            for start, stop in run.blocks() if run.op != "copy" else ():
                old = source[position + start : position + stop]
                waiting.append(threads.submit(_block, run, start, old, places))
                if len(waiting) > _UNDER_WAY:
                    yield waiting.popleft().result()
                done.advance(stop - start)
            position += run.length
            if run.op == "copy":
                done.advance(run.length)
        while waiting:
            yield waiting.popleft().result()


def _block(run: Run, start: int, old: Array, places: dict[str, Path]) -> bytes:
    if run.op == "literal":
        return pack(old.tobytes(), old.data)
    return pack(difference(old, elements(places[run.file], run, start, len(old)), run.target), old.data)


def elements(path: Path, run: Run, start: int, length: int) -> Array:
    """The elements of the merged tensor that ``length`` bytes of the base from ``start`` of the run correspond to."""
    kind, size = numpy_dtype(run.source), DTYPES[run.target].size
    offset = run.offset + start // size * kind.itemsize
    count = length // size * kind.itemsize
    with path.open("rb") as stream:
        stream.seek(offset)
        return np.frombuffer(stream.read(count), np.uint8).view(kind)
