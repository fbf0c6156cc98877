"""The base back out of a merged checkpoint, byte by byte, or nothing."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError, InvalidInputError, NotAllowedError, UsageError
from lora_registry.format.files import (
    claim,
    open_file,
    refuse_existing,
    staging_folder,
    storage_errors,
    sync_folder,
)
from lora_registry.merge.bases.base import PICKLED
from lora_registry.merge.destination import check_room
from lora_registry.merge.receipt import FileRecord, receipt_path
from lora_registry.merge.recorded import Recorded, read_receipt, require_files
from lora_registry.merge.undo.block import read_block, require_digest, restored, unpack
from lora_registry.merge.undo.header import Run, UndoHeader, read_header
from lora_registry.merge.undo.patch import elements
from lora_registry.progress import Counted, Progress

_CHUNK = 1 << 20
_OF_FILES = (".safetensors", ".gguf", *PICKLED)
_UNDER_WAY = 6  # chunks that are being made, at most


def unmerge(merged: Path, patch: Path, out: Path, *, progress: Progress | None = None) -> tuple[FileRecord, ...]:
    """Restore the base from a merged checkpoint and its reverse patch.

    Args:
        merged: the merged checkpoint; where a receipt lies beside it, that has to be of the same files.
        patch: what :func:`~lora_registry.merge.undo.patch.write_undo` wrote.
        out: the folder or file to make.
        progress: called with the bytes restored and all.

    Returns:
        The files that were restored.

    Raises:
        NotFoundError: ``merged`` or ``patch`` does not exist.
        IntegrityError: ``merged`` is not what the patch was made of, or what came out is not the base.
        InvalidInputError: the patch breaks a rule of its format.
        ConflictError: ``out`` exists.
        NotAllowedError: ``out`` lies in ``merged``.
        UsageError: ``out`` has the name of a file where a folder comes back, or the other way round.
        MachineError: there is no room on the disk.
    """
    with _opened(patch) as stream:
        header = read_header(stream, str(patch))
        _check_place(out, merged, None if header.folder else header.base[0].name)
        _check_receipt(merged, header)
        check_room(out, sum(record.size for record in header.base))
        places = require_files(merged, header.merged, str(patch))
        done = Counted(progress, sum(record.size for record in header.base))
        with storage_errors(out), staging_folder(out) as staging:
            for record in sorted(header.base):
                path = _inside(staging, record.name)
                with path.open("xb") as writer:
                    _restore(record, header.runs[record.name], places, stream, writer, str(patch), done)
            if stream.read(1):
                raise InvalidInputError(f"{patch}: goes on after its last block (U-004)")
            _publish(staging, out, header.base, folder=header.folder)
    return header.base


def _opened(patch: Path) -> IO[bytes]:
    with storage_errors(patch):
        return open_file(patch)


def copy_base(merged: Path, base: Path, out: Path, *, progress: Progress | None = None) -> tuple[FileRecord, ...]:
    """Copy the base that a receipt names, after every digest was checked, the merged ones too.

    Args:
        merged: the merged checkpoint, with its receipt.
        base: where the base is.
        out: the folder or file to make, with the files of the receipt and no others.
        progress: called with the bytes copied and all.

    Raises:
        NotFoundError: there is no receipt, or no base.
        IntegrityError: ``merged`` or ``base`` is not that of the receipt.
        ConflictError, NotAllowedError, UsageError, MachineError: as :func:`unmerge`.
    """
    receipt = read_receipt(receipt_path(merged))
    _check_place(out, merged, None if base.is_dir() else base.name)
    check_room(out, sum(record.size for record in receipt.inputs))
    require_files(merged, _renamed(merged, receipt.outputs), "the receipt")
    places = require_files(base, receipt.inputs, "the receipt")
    done = Counted(progress, sum(record.size for record in receipt.inputs))
    with storage_errors(out), staging_folder(out) as staging:
        for record in receipt.inputs:
            with places[record.name].open("rb") as reader, _inside(staging, record.name).open("xb") as writer:
                state = hashlib.sha256()
                while chunk := reader.read(_CHUNK):
                    writer.write(chunk)
                    state.update(chunk)
                    done.advance(len(chunk))
            if Digest(state.hexdigest()) != record.digest:
                raise IntegrityError(f"{places[record.name]} changed while it was being copied")
        _publish(staging, out, receipt.inputs, folder=base.is_dir())
    return receipt.inputs


def _renamed(path: Path, records: tuple[FileRecord, ...]) -> tuple[FileRecord, ...]:
    """One file may have got another name since."""
    if path.is_dir() or len(records) != 1:
        return records
    return (FileRecord(path.name, records[0].size, records[0].digest),)


def _check_place(out: Path, merged: Path, file: str | None) -> None:
    """Refuse a place that cannot become the base, which is one ``file`` of that name, or a folder."""
    refuse_existing(out)
    wrong = out.suffix in _OF_FILES if file is None else out.suffix != Path(file).suffix
    if wrong:
        what = "a folder" if file is None else f"one file, called *{Path(file).suffix}"
        raise UsageError(f"{out}: the base is {what}")
    if merged.is_dir() and merged.resolve() in out.resolve().parents:
        raise NotAllowedError(f"{out} lies in {merged}, which is not changed; choose another place")


def _check_receipt(merged: Path, header: UndoHeader) -> None:
    """A receipt that speaks of other files means that one of the two belongs to another merge."""
    path = receipt_path(merged)
    if not path.is_file():
        return
    receipt: Recorded = read_receipt(path)
    said = {record.digest for record in receipt.outputs}
    if not {record.digest for record in header.merged} <= said:
        raise IntegrityError(f"{path}: the receipt of another merge than the one that the patch undoes")


def _inside(staging: Path, name: str) -> Path:
    path = staging.joinpath(*name.split("/"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _restore(
    record: FileRecord,
    runs: tuple[Run, ...],
    places: dict[str, Path],
    patch: IO[bytes],
    writer: IO[bytes],
    name: str,
    done: Counted,
) -> None:
    """Write one file of the base, hashed on the way."""
    state = hashlib.sha256()
    for chunk in _chunks(runs, places, patch, name):
        state.update(chunk)
        writer.write(chunk)
        done.advance(len(chunk))
    if Digest(state.hexdigest()) != record.digest:
        raise IntegrityError(f"{name}: what it makes of {record.name} is not the base's")


def _chunks(runs: tuple[Run, ...], places: dict[str, Path], patch: IO[bytes], name: str) -> Iterator[memoryview]:
    """The bytes of a file in their order; the next few are made in threads while one is written."""
    waiting: deque[Future[memoryview]] = deque()
    with ThreadPoolExecutor(2) as threads:
        try:
            for run in runs:
                for start, stop in run.blocks():
                    packed = b"" if run.op == "copy" else read_block(patch, stop - start, name)
                    waiting.append(threads.submit(_made, run, start, stop, packed, places, name))
                    if len(waiting) > _UNDER_WAY:
                        yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def _made(run: Run, start: int, stop: int, packed: bytes, places: dict[str, Path], name: str) -> memoryview:
    """The bytes of a run from ``start`` to ``stop``."""
    if run.op == "copy":
        with places[run.file].open("rb") as reader:
            reader.seek(run.offset + start)
            return memoryview(reader.read(stop - start))
    stored, digest = unpack(packed, stop - start, name)
    made = memoryview(stored)
    if run.op == "difference":
        made = restored(stored, elements(places[run.file], run, start, stop - start), run.target).data
    require_digest(made, digest, name)
    return made


def _publish(staging: Path, out: Path, records: tuple[FileRecord, ...], *, folder: bool) -> None:
    """Give what was made its final name, on the disk."""
    for record in records:
        with staging.joinpath(*record.name.split("/")).open("rb") as stream:
            os.fsync(stream.fileno())
    if folder:
        for path in [*(path for path in staging.rglob("*") if path.is_dir()), staging]:
            sync_folder(path)
        staging.rename(out)
    else:
        claim(staging.joinpath(*records[0].name.split("/")), out)
    sync_folder(out.parent)
