"""The files of a merged ONNX model, whole or not at all.

A model without external data is written as one file. Of one with external data, the data are written first
(:mod:`~lora_registry.merge.onnx.data`). Where the output has the base's file name, in another folder, its data files
keep theirs, too; and if only elements of external data changed, the graph is the base's, byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from lora_registry.digest import Digest
from lora_registry.errors import UnsupportedError
from lora_registry.format.files import storage_errors
from lora_registry.merge.engine import Written, write_weights
from lora_registry.merge.onnx.data import DataPlan, Packs, plan_data
from lora_registry.merge.onnx.edits import Edits
from lora_registry.merge.receipt import FileRecord
from lora_registry.merge.staging import staging
from lora_registry.onnx.checksums import checksums, update_checksums
from lora_registry.onnx.external import byte_range
from lora_registry.onnx.model import OnnxModel, external_tensors
from lora_registry.onnx.save import SavedFile, publish, refuse_outputs, save
from lora_registry.onnx.writer import LARGEST_GRAPH, move_attributes, write_bytes
from lora_registry.progress import Progress


@dataclass(frozen=True, slots=True)
class Layout:
    """What the files of the output are called.

    Attributes:
        out: the ``.onnx``.
        data: every data file of the base to its name in the folder of ``out``, with slashes.
        same_names: whether the data files keep their names.
    """

    out: Path
    data: Mapping[Path, str]
    same_names: bool

    @classmethod
    def of(cls, model: OnnxModel, out: Path) -> Layout:
        """The layout of the output ``out`` of a merge into ``model``."""
        folder = model.path.resolve().parent
        files = sorted({model.data.path(tensor) for tensor in external_tensors(model.ir)})
        locations = {path: path.relative_to(folder).as_posix() for path in files}
        if out.name == model.path.name and out.resolve().parent != folder:
            return cls(out, locations, same_names=True)
        alone = len(files) == 1
        renamed = {
            path: f"{out.name}.data" if alone else f"{out.name}.{location.replace('/', '.')}"
            for path, location in locations.items()
        }
        return cls(out, renamed, same_names=False)

    @property
    def outputs(self) -> list[Path]:
        """Every file, the graph last."""
        return [*(self.out.parent / name for name in self.data.values()), self.out]


@dataclass(frozen=True, slots=True)
class Saved:
    """What was read and written: records of the base's files, and of those of the output."""

    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]


def write_files(
    model: OnnxModel,
    edits: Edits,
    out: Path,
    annotations: Callable[[], Mapping[str, str]],
    receipt: tuple[Path, Callable[[Saved], bytes]],
    *,
    workers: int,
    hashed: bool,
    durable: bool,
    overwrite: bool,
    progress: Progress | None,
) -> Saved:
    """Write a merged model and its receipt.

    Args:
        model: the base.
        edits: what changes, already made in its graph.
        out: the ``.onnx`` to write.
        annotations: makes entries for ``metadata_props``; asked where the graph is written anew.
        receipt: path and maker of the receipt, which appears with the model.
        workers: threads.
        hashed: whether data files get digests.
        durable: whether all of it is on the disk when this returns.
        overwrite: whether outputs may exist.
        progress: called with the bytes written and of all.

    Raises:
        ConflictError: an output exists and ``overwrite`` is false, or another merge into ``out`` is under way.
        NotAllowedError: an output is a file of the base.
        NotFoundError: the folder of ``out`` does not exist.
        InvalidInputError: a result is not finite, or not in the range of its type.
        UnsupportedError: the graph would be larger than 2 GiB.
        MachineError: the disk is full, or failed. Nothing stays behind.
    """
    layout = Layout.of(model, out)
    graph_record = FileRecord(model.path.name, model.path.stat().st_size, Digest.of_file(model.path))
    if not layout.data:
        edits.patch.annotate(annotations())
        saved: list[Saved] = []

        def sidecar(files: tuple[SavedFile, ...]) -> bytes:
            saved.append(Saved((graph_record,), tuple(FileRecord(each.name, each.size, each.digest) for each in files)))
            return receipt[1](saved[0])

        save(edits.patch, out, sidecar=(receipt[0], sidecar), overwrite=overwrite, progress=progress)
        return saved[0]
    if _graph_bytes(model) > LARGEST_GRAPH:
        raise UnsupportedError(f"{model.path}: the graph would be larger than 2 GiB; save its tensors as external data")
    outputs = [*layout.outputs[:-1], receipt[0], out]
    refuse_outputs(model, outputs, overwrite)
    with storage_errors(out), staging(out, resume=False) as place:
        for name in layout.data.values():
            (place.files / name).parent.mkdir(parents=True, exist_ok=True)
        data = plan_data(model, edits.all, lambda path: layout.data[path])
        written = write_weights(
            data.plan,
            data.base,
            place,
            {},
            processor=Packs(),
            workers=workers,
            hashed=hashed,
            durable=False,
            resume=False,
            progress=progress,
        )
        _take_figures(data, written)
        if durable:
            for name in layout.data.values():
                _sync(place.files / name)
        _write_graph(model, edits, layout, data, annotations, place.files)
        made = place.files / out.name
        done = Saved(
            (graph_record, *_named(written.inputs, list(layout.data), model.path.resolve().parent)),
            (FileRecord(out.name, made.stat().st_size, Digest.of_file(made)), *written.outputs),
        )
        write_bytes(place.files / receipt[0].name, receipt[1](done))
        publish(place.files, outputs, overwrite)
    return done


def _named(records: Sequence[FileRecord], paths: Sequence[Path], folder: Path) -> list[FileRecord]:
    """The engine numbers the files of the base."""
    return [
        FileRecord(path.relative_to(folder).as_posix(), record.size, record.digest)
        for record, path in zip(records, paths, strict=True)
    ]


def _take_figures(data: DataPlan, written: Written) -> None:
    for record in written.tensors:
        if record.name in data.edits:
            data.edits[record.name].fidelity = record.fidelity


def _sync(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _graph_bytes(model: OnnxModel) -> int:
    tensors = (value.const_value for value in model.values())
    return sum(t.nbytes for t in tensors if t is not None and not isinstance(t, ir.ExternalTensor))


# -- the graph ----------------------------------------------------------------------------------------------


def keeps_graph(edits: Edits, layout: Layout, data: DataPlan) -> bool:
    """Whether the graph of the output is that of the base: only elements of external data change, where they lie."""
    in_place = all(isinstance(edit.before, ir.ExternalTensor) and edit.value not in data.appended for edit in edits.all)
    return layout.same_names and in_place and not edits.structural


def _write_graph(
    model: OnnxModel,
    edits: Edits,
    layout: Layout,
    data: DataPlan,
    annotations: Callable[[], Mapping[str, str]],
    folder: Path,
) -> None:
    path = folder / layout.out.name
    if keeps_graph(edits, layout, data):
        proto = onnx.load(model.path, load_external_data=False)
        if not checksums(proto):
            shutil.copyfile(model.path, path)
            _sync(path)
            return
        update_checksums(proto, lambda location: _sha1(folder / location))
        write_bytes(path, proto.SerializeToString(deterministic=True))
        return
    edits.patch.annotate(annotations())
    placed = {value: _placed(value.const_value, *place, folder) for value, place in data.appended.items()}
    for edit in edits.all:
        if not isinstance(edit.before, ir.ExternalTensor) or not edit.nbytes:
            placed[edit.value] = ir.tensor(edits.elements(edit), name=edit.value.name)
    moved: dict[int, ir.ExternalTensor] = {}
    for tensor in external_tensors(model.ir):
        moved[id(tensor)] = _placed(tensor, layout.data[model.data.path(tensor)], byte_range(tensor)[0], folder)
    move_attributes(model.ir, moved)
    for value in model.values():
        if id(value.const_value) in moved and value not in placed:
            placed[value] = moved[id(value.const_value)]
    for value, tensor in placed.items():
        value.const_value = tensor
    write_bytes(path, ir.serde.serialize_model(model.ir).SerializeToString(deterministic=True))


def _placed(tensor: ir.TensorProtocol | None, location: str, offset: int, folder: Path) -> ir.ExternalTensor:
    assert tensor is not None
    return ir.ExternalTensor(
        location,
        offset,
        tensor.nbytes,
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=str(tensor.name),
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
        base_dir=folder,
    )


def _sha1(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha1").hexdigest()  # what ONNX says the key holds
