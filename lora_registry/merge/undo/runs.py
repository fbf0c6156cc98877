"""Which bytes of a base a merged checkpoint holds, and where: the runs of a reverse patch.

Files are compared as they are stored, so that the parts of a quantized weight, the framing of a pickle and a whole
GGUF file are bytes like any others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lora_registry.dtypes import DTYPES
from lora_registry.merge.bases.base import Checkpoint, open_base
from lora_registry.merge.companions import find_companions
from lora_registry.merge.undo.header import Run
from lora_registry.ops.arrays import Array

_PAGE = 1 << 16
"""Bytes of which all are compared, or none: where nothing says where a tensor begins."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one tensor lies.

    Attributes:
        file: name of the file.
        begin: offset of its first byte.
        end: one past the last.
        dtype: element type.
        shape: axis lengths.
    """

    file: str
    begin: int
    end: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint as it is stored.

    Attributes:
        path: the folder, or the file.
        weights: name of each file of weights to where it is.
        files: the same for every file that belongs to the checkpoint.
        tensors: name to place; none of a GGUF file, which is taken as bytes.
    """

    path: Path
    weights: Mapping[str, Path]
    files: Mapping[str, Path]
    tensors: Mapping[str, Extent]

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder and not one file."""
        return self.path.is_dir()


def open_stored(path: str | Path) -> Stored:
    """Open a checkpoint, or a GGUF file, without looking at what its tensors stand for.

    Raises:
        NotFoundError, InvalidInputError, UnsupportedError: as :func:`~lora_registry.merge.bases.base.open_base`.
    """
    path = Path(path)
    if path.suffix == ".gguf" and path.is_file():
        return Stored(path, {path.name: path}, {path.name: path}, {})
    model = open_base(path)
    weights = {name: container.path for name, container in model.shards.items()}
    extents = {name: _extent(model, name) for name in model.names()}
    if not model.is_folder:
        return Stored(path, weights, weights, extents)
    names = [*([model.index.name] if model.index else []), *find_companions(model).copied]
    return Stored(model.path, weights, {**weights, **{name: model.path / name for name in names}}, extents)


def _extent(model: Checkpoint, name: str) -> Extent:
    begin, end = model.window(name)
    return Extent(model.places[name], begin, end, model.dtype(name), model.shape(name))


def runs_of(name: str, base: Stored, merged: Stored) -> list[Run]:
    """How the file ``name`` of ``base`` comes about from the files of ``merged``."""
    size = base.files[name].stat().st_size
    own = [(extent, tensor) for tensor, extent in base.tensors.items() if extent.file == name]
    other = name if name in merged.files or name not in base.weights else min(merged.weights)
    runs: list[Run] = []
    position = 0
    for extent, tensor in sorted(own, key=lambda each: (each[0].begin, each[0].end)):
        if position <= extent.begin < extent.end:  # tensors of a pickle may share their bytes
            runs += _between(base.files[name], position, extent.begin, other, merged)
            runs.append(_tensor(base.files[name], extent, tensor, merged))
            position = extent.end
    runs += _between(base.files[name], position, size, other, merged)
    return list(_joined(runs))


def _between(path: Path, begin: int, end: int, other: str, merged: Stored) -> list[Run]:
    """The runs of bytes that are no tensor's; ``other`` is the name of the file that may have them too."""
    length, place = end - begin, merged.files.get(other)
    if length == 0:
        return []
    if place is None or place.stat().st_size < end:
        return [Run("literal", length)]
    if _same(path, begin, place, begin, length):
        return [Run("copy", length, other, begin)]
    if place.stat().st_size != path.stat().st_size:
        return [Run("literal", length)]
    runs = []
    for start in range(begin, end, _PAGE):
        size = min(_PAGE, end - start)
        equal = _same(path, start, place, start, size)
        runs.append(Run("copy", size, other, start) if equal else Run("difference", size, other, start, "U8", "U8"))
    return runs


def _tensor(path: Path, own: Extent, name: str, merged: Stored) -> Run:
    """The run of one tensor: as it is in the merged files, or near it, or new."""
    length, other = own.end - own.begin, merged.tensors.get(name)
    if other is None or other.shape[1:] != own.shape[1:] or other.shape[:1] < own.shape[:1]:
        return Run("literal", length)  # a table that has grown begins with the rows of the base
    if other.dtype == own.dtype:
        if _same(path, own.begin, merged.files[other.file], other.begin, length):
            return Run("copy", length, other.file, other.begin)
        # Words hold several numbers of a few bits, of which most stay: bytes are smaller then than their differences.
        element = own.dtype if DTYPES[own.dtype].floating else "U8"
        return Run("difference", length, other.file, other.begin, element, element)
    if not (DTYPES[other.dtype].is_wide_float and DTYPES[own.dtype].is_wide_float):
        return Run("literal", length)
    return Run("difference", length, other.file, other.begin, other.dtype, own.dtype)


def _same(path: Path, begin: int, other: Path, offset: int, length: int) -> bool:
    """Whether two files have the same bytes there."""
    one, two = _window(path, begin, length), _window(other, offset, length)
    return all(
        np.array_equal(one[start : start + _CHUNK], two[start : start + _CHUNK]) for start in range(0, length, _CHUNK)
    )


def _window(path: Path, begin: int, length: int) -> Array:
    return np.memmap(path, np.uint8, "r", begin, (length,))


def _joined(runs: list[Run]) -> Iterator[Run]:
    """Runs that take from one place to the next in the same way become one."""
    last: Run | None = None
    for run in runs:
        if last is not None and _continues(last, run):
            last = Run(last.op, last.length + run.length, last.file, last.offset, last.source, last.target)
            continue
        if last is not None:
            yield last
        last = run
    if last is not None:
        yield last


def _continues(last: Run, run: Run) -> bool:
    if last.op != run.op or (last.source, last.target) != (run.source, run.target):
        return False
    if run.op == "difference" and run.source != "U8":
        return False
    return run.op == "literal" or (last.file, last.offset + last.read) == (run.file, run.offset)
