"""One side of a delta patch out of the other: byte by byte, or nothing."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from lora_registry.digest import Digest
from lora_registry.errors import (
    ConflictError,
    IntegrityError,
    NotAllowedError,
    NotFoundError,
)
from lora_registry.format.files import (
    claim,
    open_file,
    refuse_existing,
    staging_folder,
    storage_errors,
    sync_folder,
)
from lora_registry.lpatch.block import read_blocks, unpack
from lora_registry.lpatch.header import Header, Side, read_header
from lora_registry.lpatch.product import Product
from lora_registry.lpatch.runs import Factors, Run
from lora_registry.lpatch.words import unfolded
from lora_registry.merge.destination import check_room
from lora_registry.merge.receipt import FileRecord
from lora_registry.ops.arrays import Array, numpy_dtype
from lora_registry.progress import Counted, Progress

_UNDER_WAY = 4  # blocks that are being made, at most


def apply(base: Path, patch: Path, out: Path, *, progress: Progress | None = None) -> tuple[FileRecord, ...]:
    """Make the merged model of the base.

    Args:
        base: the ``.onnx``, under any name; its other files are looked for beside it, under the names it calls them.
        patch: what :func:`~lora_registry.lpatch.write.write_patch` wrote.
        out: the ``.onnx`` to make. Its other files take the names by which it calls them, beside it.
        progress: called with the bytes that are made, and all.

    Returns:
        The files, as the patch names them.

    Raises:
        NotFoundError: ``base``, ``patch`` or the folder of ``out`` does not exist.
        IntegrityError: ``base`` is not what the patch was made of, or what came out is not what it was made for.
        InvalidInputError: the patch breaks a rule of its format.
        UnsupportedError: it is of another version.
        ConflictError: a file of the output exists.
        NotAllowedError: a file of the output would lie outside of the folder of ``out``.
        MachineError: there is no room on the disk.
    """
    return _rebuild(base, patch, out, progress, back=False)


def revert(merged: Path, patch: Path, out: Path, *, progress: Progress | None = None) -> tuple[FileRecord, ...]:
    """Make the base of the merged model again; arguments and errors are those of :func:`apply`."""
    return _rebuild(merged, patch, out, progress, back=True)


def _rebuild(model: Path, patch: Path, out: Path, progress: Progress | None, *, back: bool) -> tuple[FileRecord, ...]:
    if not model.is_file():
        raise NotFoundError(f"no such file: {model}")
    with _opened(patch) as stream:
        header = read_header(stream, os.fstat(stream.fileno()).st_size, str(patch))
        given, made = (header.merged, header.base) if back else (header.base, header.merged)
        outputs = _outputs(made, out)
        places = _required(model, given, header, str(patch), back=back)
        check_room(out, made.size)
        source = _Source(stream, header, places, str(patch), back=back)
        counted = Counted(progress, made.size)
        with storage_errors(out), staging_folder(out) as staging:
            finished = {}
            for number, record in enumerate(made.files):
                finished[outputs[record.name]] = staging / str(number)
                with finished[outputs[record.name]].open("xb") as writer:
                    _write(record, source.chunks(made.runs[record.name]), writer, str(patch), counted)
            _publish(finished, out)
    return made.files


def _opened(patch: Path) -> IO[bytes]:
    with storage_errors(patch):
        return open_file(patch)


def _outputs(side: Side, out: Path) -> dict[str, Path]:
    """Where each file goes: the ``.onnx`` to ``out``, last; the others beside it under their names."""
    if not out.parent.is_dir():
        raise NotFoundError(f"no such folder: {out.parent}")
    outputs = {
        record.name: out.parent.joinpath(*record.name.split("/")) for record in side.files if record.name != side.model
    }
    for name, path in outputs.items():
        if path == out or out in path.parents:
            raise ConflictError(f"{out}: the model calls its data {name!r}, so that it cannot have this name itself")
        if not path.parent.resolve().is_relative_to(out.parent.resolve()):
            raise NotAllowedError(f"{path} is reached by a link that leaves {out.parent}")
    outputs[side.model] = out
    refuse_existing(*outputs.values())
    return outputs


def _required(model: Path, side: Side, header: Header, patch: str, *, back: bool) -> dict[str, Path]:
    """Where the files of the given side lie, each held against its size and digest."""
    places = {record.name: model.parent.joinpath(*record.name.split("/")) for record in side.files}
    places[side.model] = model
    what = "merged model" if back else "base"
    for record in side.files:
        place = places[record.name]
        if not place.is_file():
            raise IntegrityError(f"{model}: {record.name} is missing, a file of the {what} of {patch}")
    with ThreadPoolExecutor(2) as threads:  # hashing lets go of the interpreter lock
        digests = dict(zip(places, threads.map(Digest.of_file, places.values()), strict=True))
    if wrong := [record.name for record in side.files if digests[record.name] != record.digest]:
        other = header.base if back else header.merged
        known = {record.digest for record in other.files if record.name == other.model}
        hint = f"; it is the {'base' if back else 'merged model'} already" if digests[side.model] in known else ""
        raise IntegrityError(f"{places[wrong[0]]}: not the file of the {what} of {patch}{hint}")
    return places


@dataclass(slots=True)
class _Source:
    """The given side and the patch, out of which the bytes of the other side come."""

    patch: IO[bytes]
    header: Header
    places: Mapping[str, Path]
    name: str
    back: bool

    def chunks(self, runs: tuple[Run, ...]) -> Iterator[memoryview]:
        """The bytes of a file in their order; the next few are made in threads while one is written."""
        files = {name: np.memmap(path, np.uint8, "r") for name, path in self.places.items() if path.stat().st_size}
        waiting: deque[Future[memoryview]] = deque()
        with ThreadPoolExecutor(2) as threads:
            try:
                for run in runs:
                    known = files[run.file] if run.file else None
                    product = self._product(self.header.products[run.product]) if run.op == "product" else None
                    start = 0
                    for length, packed in self._packed(run):
                        waiting.append(threads.submit(self._made, run, start, length, packed, known, product))
                        start += length
                        if len(waiting) > _UNDER_WAY:
                            yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                threads.shutdown(cancel_futures=True)

    def _packed(self, run: Run) -> Iterator[tuple[int, bytes]]:
        """What each block makes, and the block as it is; nothing where bytes are copied."""
        lengths = tuple(run.lengths())
        if run.op == "copy":
            yield from ((length, b"") for length in lengths)
        else:
            yield from zip(lengths, read_blocks(self.patch, run.at, run.size, iter(lengths), self.name), strict=True)

    def _product(self, factors: Factors) -> Product:
        self.patch.seek(factors.at)
        kind = numpy_dtype(factors.dtype)
        left, right = (
            np.frombuffer(self.patch.read(factors.rank * side * kind.itemsize), kind).reshape(factors.rank, side)
            for side in (factors.rows, factors.columns)
        )
        return Product(left, right, factors.scale)

    def _made(
        self, run: Run, start: int, length: int, packed: bytes, known: Array | None, product: Product | None
    ) -> memoryview:
        """``length`` bytes of a run from ``start`` on."""
        stored = unpack(packed, run.op, length, self.name) if run.op != "copy" else b""
        if known is None:
            return memoryview(stored)
        taken = known[run.offset + start : run.offset + start + length].copy()
        if run.op == "copy":
            return taken.data
        words = taken.view(f"<u{run.word}")
        if product is None:
            made = unfolded(stored, words, subtract=self.back)
        else:
            predicted = product.predicted(words, start // run.word, run.dtype, subtract=self.back)
            made = unfolded(stored, predicted)
        return made.view(np.uint8).data


def _write(record: FileRecord, chunks: Iterator[memoryview], writer: IO[bytes], patch: str, counted: Counted) -> None:
    """Write one file, hashed on the way."""
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
        writer.write(chunk)
        counted.advance(len(chunk))
    if Digest(state.hexdigest()) != record.digest:
        raise IntegrityError(f"{patch}: what it makes of {record.name} is not the file that it is of (L-005)")
    writer.flush()
    os.fsync(writer.fileno())


def _publish(finished: Mapping[Path, Path], out: Path) -> None:
    """Give the files their names, the model last; take them back if one was taken meanwhile, or on an interrupt."""
    named: list[Path] = []
    try:
        for path, unfinished in sorted(finished.items(), key=lambda item: item[0] == out):
            path.parent.mkdir(parents=True, exist_ok=True)
            claim(unfinished, path)
            named.append(path)
    finally:
        if len(named) < len(finished):
            for path in named:
                with suppress(OSError):
                    path.unlink()
    for folder in {path.parent for path in named}:
        sync_folder(folder)
