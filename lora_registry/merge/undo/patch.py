"""Making the reverse patch of a merge, from the base and what was merged, by whatever program."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import NotAllowedError
from lora_registry.format.files import atomic_write
from lora_registry.merge.receipt import FileRecord
from lora_registry.merge.undo.block import difference, pack
from lora_registry.merge.undo.header import Run, UndoHeader
from lora_registry.merge.undo.runs import open_stored, runs_of
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
        base_path: the base, as it is; of a quantized one, the stored parts of its weights come back.
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
    base, merged = open_stored(base_path), open_stored(merged_path)
    for model in (base, merged):
        if model.is_folder and model.path.resolve() in patch.resolve().parents:
            raise NotAllowedError(f"{patch} lies in {model.path}, which is not changed; choose another place")
    runs = {name: runs_of(name, base, merged) for name in base.files}
    used = sorted({run.file for each in runs.values() for run in each if run.op != "literal"})
    header = UndoHeader(
        folder=base.is_folder,
        merged=_records({name: merged.files[name] for name in used or sorted(merged.files)[:1]}),
        base=_records(base.files),
        runs={name: tuple(each) for name, each in runs.items()},
    )
    total = sum(record.size for record in header.base)
    done = Counted(progress, total)
    with atomic_write(patch, overwrite=overwrite) as stream:
        stream.write(header.encode())
        for name, path in sorted(base.files.items()):
            for block in _packed(path, runs[name], merged.files, done):
                stream.write(block)
        size = stream.tell()
    changed = sum(run.length for each in runs.values() for run in each if run.op != "copy")
    return UndoSize(size, changed, total)


def _records(files: Mapping[str, Path]) -> tuple[FileRecord, ...]:
    with ThreadPoolExecutor(2) as threads:
        digests = list(threads.map(Digest.of_file, files.values()))
    sizes = [path.stat().st_size for path in files.values()]
    return tuple(FileRecord(*record) for record in zip(files, sizes, digests, strict=True))


def _packed(path: Path, runs: list[Run], places: Mapping[str, Path], done: Counted) -> Iterator[bytes]:
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


def _block(run: Run, start: int, old: Array, places: Mapping[str, Path]) -> bytes:
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
