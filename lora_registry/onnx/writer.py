"""The bytes of a patched model: a copy of the base's data files with some ranges written anew, and the graph."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx_ir as ir

from lora_registry.format.files import copy_bytes
from lora_registry.onnx.external import byte_range
from lora_registry.onnx.model import external_tensors
from lora_registry.onnx.patch import Patch
from lora_registry.ops.arrays import Array, as_bytes
from lora_registry.progress import Counted, Progress

ALIGNMENT = 4096  # of what is added to a data file, so that runtimes can map it
SMALLEST_EXTERNAL = 1024  # bytes; smaller new tensors stay in the graph
LARGEST_GRAPH = (1 << 31) - (1 << 26)  # bytes; a protobuf message ends at 2 GiB, and the graph needs some


def write_bytes(path: Path, content: bytes) -> None:
    """Write a new file and make it survive a power cut."""
    with path.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


class Writer:
    """Writes one model into a folder.

    New tensors are collected in ``_placed`` and put into the graph only at the end: until then makers read
    the old ones.
    """

    def __init__(self, patch: Patch, folder: Path, location: str, progress: Progress | None) -> None:
        self._patch = patch
        self._model = patch.model
        self._folder = folder
        self._location = location
        self._made = Counted(progress, len(patch.makers))
        self._end = 0
        self._placed: dict[ir.Value, ir.TensorProtocol] = {}

    def write(self, path: Path) -> bool:
        """Write the graph to ``path`` and the data beside it; returns whether there are data."""
        external = list(external_tensors(self._model.ir))
        too_big = self._graph_bytes() > LARGEST_GRAPH
        if external or too_big:
            with (self._folder / self._location).open("xb") as stream:
                self._write_data(stream, external, too_big)
                stream.flush()
                os.fsync(stream.fileno())
        for value in self._patch.makers:
            if value not in self._placed:
                self._placed[value] = ir.tensor(self._make(value), name=value.name)
        for value, tensor in self._placed.items():
            value.const_value = tensor
        write_bytes(path, ir.serde.serialize_model(self._model.ir).SerializeToString(deterministic=True))
        return bool(external) or too_big

    def _graph_bytes(self) -> int:
        tensors = (value.const_value for value in self._model.values())
        return sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))

    def _make(self, value: ir.Value) -> Array:
        array = self._patch.makers[value]()
        self._made.advance(1)
        return array

    # -- the data file --------------------------------------------------------------------------------------

    def _write_data(self, stream: BinaryIO, external: list[ir.ExternalTensor], too_big: bool) -> None:
        sources = dict.fromkeys(self._model.data.path(tensor) for tensor in external)
        starts = {path: self._append_file(stream, path) for path in sources}
        moved = {
            id(tensor): self._external(tensor, starts[self._model.data.path(tensor)] + byte_range(tensor)[0])
            for tensor in external
        }
        move_attributes(self._model.ir, moved)
        aliased = overlapping(list(moved.values()))
        in_place: list[tuple[int, ir.Value]] = []
        added: list[ir.Value] = []
        for value in self._model.values():
            tensor, changes = value.const_value, value in self._patch.makers
            if isinstance(tensor, ir.ExternalTensor):
                place = moved[id(tensor)]
                self._placed[value] = place
                if changes and place.offset in aliased:
                    added.append(value)
                elif changes:
                    in_place.append((place.offset, value))
            elif (too_big or changes) and _is_large(tensor):
                added.append(value)
        for offset, value in sorted(in_place, key=lambda pair: pair[0]):
            stream.seek(offset)
            stream.write(as_bytes(np.ascontiguousarray(self._make(value))))
        for value in added:
            self._append_tensor(stream, value)

    def _append_file(self, stream: BinaryIO, path: Path) -> int:
        start = self._pad(stream)
        with path.open("rb") as source:
            copy_bytes(source, stream)
        self._end = stream.seek(0, os.SEEK_END)
        return start

    def _append_tensor(self, stream: BinaryIO, value: ir.Value) -> None:
        tensor = value.const_value
        assert tensor is not None
        start = self._pad(stream)
        if value in self._patch.makers:
            stream.write(as_bytes(np.ascontiguousarray(self._make(value))))
        else:
            stream.write(tensor.tobytes())
        self._end = stream.tell()
        self._placed[value] = self._external(tensor, start)

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


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    """Whether a tensor of the graph goes to the data file, once it must be written anew."""
    return tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes >= SMALLEST_EXTERNAL


def move_attributes(model: ir.Model, moved: dict[int, ir.ExternalTensor]) -> None:
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


def overlapping(tensors: list[ir.ExternalTensor]) -> set[int]:
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
