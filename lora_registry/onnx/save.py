"""A patched model as files: ``out.onnx`` and, where the base had data files, ``out.onnx.data``.

The base's data files are copied as they are, by the file system where it can share blocks, and only the
ranges that change are written again; so the cost is that of a copy, and untouched bytes are the base's.
Both files are made in a folder of their own beside ``out`` and take their names at the end, the data first.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, NotAllowedError, NotFoundError
from lora_registry.format.files import storage_errors, sync_folder
from lora_registry.onnx.external import byte_range
from lora_registry.onnx.model import OnnxModel, external_tensors
from lora_registry.onnx.patch import Patch
from lora_registry.ops.arrays import Array, as_bytes

ALIGNMENT = 4096  # of what is added to a data file, so that runtimes can map it
SMALLEST_EXTERNAL = 1024  # bytes; smaller new tensors stay in the graph
LARGEST_GRAPH = (1 << 31) - (1 << 26)  # bytes; a protobuf message ends at 2 GiB, and the graph needs some

_NO_SHARING = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM})

Progress = Callable[[str], None]
"""Called with the name of every initializer whose new values were just written."""


@dataclass(frozen=True, slots=True)
class SavedFile:
    """One file that was written: its name, its size in bytes, its sha256."""

    name: str
    size: int
    digest: Digest


Sidecar = Callable[[tuple[SavedFile, ...]], bytes]
"""Makes the content of a file that describes the others, such as a receipt."""


def save(
    patch: Patch,
    out: Path,
    *,
    sidecar: tuple[Path, Sidecar] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[SavedFile, ...]:
    """Write the patched model.

    Args:
        patch: the edits.
        out: the ``.onnx``; data, if there are any, go to ``<out>.data``.
        sidecar: path in the folder of ``out``, and maker, of one more file that appears with the model.
        overwrite: whether outputs may exist.
        progress: see :data:`Progress`.

    Returns:
        The model, and the data file if there is one.

    Raises:
        ConflictError: an output exists and ``overwrite`` is false.
        NotAllowedError: an output is a file of the base.
        NotFoundError: the folder of ``out`` does not exist.
        MachineError: the disk is full, or failed. Nothing stays behind.
    """
    data = out.with_name(out.name + ".data")
    outputs = [data, out] if sidecar is None else [data, sidecar[0], out]
    _refuse_outputs(patch.model, outputs, overwrite)
    with storage_errors(out):
        workshop = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
        try:
            has_data = _Writer(patch, workshop, data.name, progress or (lambda _: None)).write(workshop / out.name)
            saved = tuple(_record(workshop / path.name) for path in ((out, data) if has_data else (out,)))
            if sidecar is not None:
                _write(workshop / sidecar[0].name, sidecar[1](saved))
            _publish(workshop, outputs if has_data else outputs[1:], overwrite)
            if not has_data:
                data.unlink(missing_ok=True)  # of the model that was overwritten
        finally:
            shutil.rmtree(workshop, ignore_errors=True)
    return saved


def _record(path: Path) -> SavedFile:
    return SavedFile(path.name, path.stat().st_size, Digest.of_file(path))


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _refuse_outputs(model: OnnxModel, outputs: list[Path], overwrite: bool) -> None:
    base = {path.resolve() for path in model.files()}
    for path in outputs:
        if path.resolve() in base:
            raise NotAllowedError(f"{path} belongs to the base, which is never changed; choose another name")
        if not overwrite and os.path.lexists(path):
            raise ConflictError(f"{path} exists; remove it or choose another name")
    if not outputs[-1].parent.is_dir():
        raise NotFoundError(f"no such folder: {outputs[-1].parent}")


def _publish(workshop: Path, files: list[Path], overwrite: bool) -> None:
    """Give the finished files their names; take them back if one of the names was taken meanwhile."""
    named: list[Path] = []
    try:
        for path in files:
            if overwrite:
                (workshop / path.name).replace(path)
            else:
                os.link(workshop / path.name, path)
                named.append(path)
    except FileExistsError:
        raise ConflictError(f"{path} exists; remove it or choose another name") from None
    finally:
        if len(named) not in (0, len(files)):
            for path in named:
                with suppress(OSError):
                    path.unlink()
    sync_folder(files[0].parent)


class _Writer:
    """Writes one model into a folder.

    New tensors are collected in ``_placed`` and put into the graph only at the end: until then makers read
    the old ones.
    """

    def __init__(self, patch: Patch, folder: Path, location: str, progress: Progress) -> None:
        self._patch = patch
        self._model = patch.model
        self._folder = folder
        self._location = location
        self._progress = progress
        self._end = 0
        self._placed: dict[str, ir.TensorProtocol] = {}

    def write(self, path: Path) -> bool:
        """Write the graph to ``path`` and the data beside it; returns whether there are data."""
        external = list(external_tensors(self._model.ir))
        too_big = self._graph_bytes() > LARGEST_GRAPH
        if external or too_big:
            with (self._folder / self._location).open("xb") as stream:
                self._write_data(stream, external, too_big)
                stream.flush()
                os.fsync(stream.fileno())
        for name in self._patch.makers:
            if name not in self._placed:
                self._placed[name] = ir.tensor(self._make(name), name=name)
        for name, tensor in self._placed.items():
            self._values[name].const_value = tensor
        _write(path, ir.serde.serialize_model(self._model.ir).SerializeToString(deterministic=True))
        return bool(external) or too_big

    @cached_property
    def _values(self) -> dict[str, ir.Value]:
        return {name: value for graph in self._model.ir.graphs() for name, value in graph.initializers.items()}

    def _graph_bytes(self) -> int:
        tensors = (value.const_value for value in self._values.values())
        return sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))

    def _make(self, name: str) -> Array:
        array = self._patch.makers[name]()
        self._progress(name)
        return array

    # -- the data file --------------------------------------------------------------------------------------

    def _write_data(self, stream: BinaryIO, external: list[ir.ExternalTensor], too_big: bool) -> None:
        sources = dict.fromkeys(self._model.data.path(tensor) for tensor in external)
        starts = {path: self._append_file(stream, path) for path in sources}
        moved = {
            id(tensor): self._external(tensor, starts[self._model.data.path(tensor)] + byte_range(tensor)[0])
            for tensor in external
        }
        _move_attributes(self._model.ir, moved)
        aliased = _overlapping(list(moved.values()))
        in_place: list[tuple[int, str]] = []
        added: list[str] = []
        for name, value in self._values.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor):
                self._placed[name] = moved[id(tensor)]
                offset = moved[id(tensor)].offset
                if name in self._patch.makers:
                    added.append(name) if offset in aliased else in_place.append((offset, name))
            elif (
                tensor is not None
                and (too_big or name in self._patch.makers)
                and tensor.nbytes >= SMALLEST_EXTERNAL
                and tensor.dtype != ir.DataType.STRING
            ):
                added.append(name)
        for offset, name in sorted(in_place):
            stream.seek(offset)
            stream.write(as_bytes(np.ascontiguousarray(self._make(name))))
        for name in added:
            self._append_tensor(stream, name)

    def _append_file(self, stream: BinaryIO, path: Path) -> int:
        start = self._pad(stream)
        with path.open("rb") as source:
            _copy(source, stream)
        self._end = stream.seek(0, os.SEEK_END)
        return start

    def _append_tensor(self, stream: BinaryIO, name: str) -> None:
        tensor = self._values[name].const_value
        assert tensor is not None
        start = self._pad(stream)
        if name in self._patch.makers:
            stream.write(as_bytes(np.ascontiguousarray(self._make(name))))
        else:
            stream.write(tensor.tobytes())
        self._end = stream.tell()
        self._placed[name] = self._external(tensor, start)

    def _pad(self, stream: BinaryIO) -> int:
        """Move to the next aligned place after all that was written, and return it."""
        self._end = -(-self._end // ALIGNMENT) * ALIGNMENT
        stream.seek(self._end)
        return self._end

    def _external(self, tensor: ir.TensorProtocol, offset: int) -> ir.ExternalTensor:
        return ir.ExternalTensor(
            self._location,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=str(tensor.name),
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
            base_dir=self._folder,
        )


def _move_attributes(model: ir.Model, moved: dict[int, ir.ExternalTensor]) -> None:
    """Let tensors in attributes, such as those of Constant nodes, point into the new data file."""
    for scope in (model.graph, *model.functions.values()):
        for node in ir.traversal.RecursiveGraphIterator(scope):
            for name, attribute in list(node.attributes.items()):
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR and id(attribute.value) in moved:
                    node.attributes[name] = ir.AttrTensor(name, moved[id(attribute.value)])
                elif attribute.type == ir.AttributeType.TENSORS and any(id(t) in moved for t in attribute.value):
                    node.attributes[name] = ir.AttrTensors(name, [moved.get(id(t), t) for t in attribute.value])


def _overlapping(tensors: list[ir.ExternalTensor]) -> set[int]:
    """Offsets of tensors that share bytes with another one: writing into one of them would change both."""
    ranges = sorted(byte_range(tensor) for tensor in tensors if tensor.nbytes)
    found: set[int] = set()
    reach, holder = -1, -1
    for begin, end in ranges:
        if begin < reach:
            found.update((begin, holder))
        if end > reach:
            reach, holder = end, begin
    return found


def _copy(source: BinaryIO, target: BinaryIO) -> None:
    """Append all of ``source`` at the position of ``target``, sharing blocks where the file system can."""
    target.flush()
    left = os.fstat(source.fileno()).st_size
    try:
        while left > 0:
            done = os.copy_file_range(source.fileno(), target.fileno(), min(left, 1 << 30))
            if done == 0:
                break
            left -= done
    except OSError as error:
        if error.errno not in _NO_SHARING:
            raise
    if left > 0:
        source.seek(os.fstat(source.fileno()).st_size - left)
        target.seek(os.lseek(target.fileno(), 0, os.SEEK_CUR))
        shutil.copyfileobj(source, target, 1 << 20)
