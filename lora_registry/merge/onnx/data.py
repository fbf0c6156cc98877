"""External data of a merged model: copies of the base's files, written by the engine of merges.

What does not change is copied by the file system, which shares blocks where it can; what does is made block by
block, so that memory stays that of a few blocks whatever the size of the model. Offsets stay what they were;
initializers that are new, because others go on reading the old ones, come behind all the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from lora_registry.adapter import Kind, Target, Tensor
from lora_registry.format.container import Container, Entry
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.kernel import BlockKernel, Kernel, Read
from lora_registry.merge.onnx.edits import Edit
from lora_registry.merge.packed import PackedKernel, PackedPart
from lora_registry.merge.plan import FilePlan, Part, Plan
from lora_registry.merge.processor import Cpu
from lora_registry.onnx.external import byte_range
from lora_registry.onnx.model import OnnxModel, dtype_of, external_tensors, shape_of
from lora_registry.onnx.writer import ALIGNMENT, overlapping


class Packs(Cpu):
    """The cores of this machine, for tensors of which targets change parts as well."""

    def kernel(self, part: Part, dtype: str, read: Read) -> BlockKernel:  # type: ignore[override]
        """The arithmetic of numpy, part by part."""
        return PackedKernel(part, dtype, read) if isinstance(part, PackedPart) else Kernel(part, dtype, read)


@dataclass(frozen=True, slots=True)
class DataPlan:
    """The data files of a merged model.

    Attributes:
        plan: what each holds, for the engine.
        base: the files that they are made from, for the engine.
        edits: name of a part to the edit that it is.
        appended: initializers that are new, to the file of the output and the offset in it.
    """

    plan: Plan
    base: Checkpoint
    edits: Mapping[str, Edit]
    appended: Mapping[ir.Value, tuple[str, int]]


def plan_data(model: OnnxModel, edits: Sequence[Edit], named: Callable[[Path], str]) -> DataPlan:
    """Decide what the data files of the output hold.

    Args:
        model: the base.
        edits: what changes; those that start from a tensor in the graph stay there, and are not of concern here.
        named: the name in the output of a data file of the base.
    """
    planner = _Planner(model)
    for edit in edits:
        if isinstance(edit.before, ir.ExternalTensor) and edit.nbytes:
            planner.take(edit, edit.before)
    return planner.finish(named)


class _DataFile(Container):
    """A file without a header, of which some ranges are tensors."""

    def __init__(self, path: Path, entries: dict[str, Entry]) -> None:
        self.path = path
        self.header_bytes = b""
        self.metadata = {}
        self.entries = entries
        self.data_start = 0
        self._map = None


class _DataFiles(Checkpoint):
    """The data files of a model, as the engine reads checkpoints."""

    def head(self, file: str) -> bytes:
        """Nothing comes before the data."""
        return b""


class _Planner:
    """Sorts the edits by file."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        external = list(external_tensors(model.ir))
        self._files = sorted({model.data.path(tensor) for tensor in external})
        by_file: dict[Path, list[ir.ExternalTensor]] = defaultdict(list)
        for tensor in {id(tensor): tensor for tensor in external}.values():
            by_file[model.data.path(tensor)].append(tensor)
        self._aliased = {path: overlapping(tensors) for path, tensors in by_file.items()}
        self._in_place: dict[Path, list[tuple[int, Edit]]] = defaultdict(list)
        self._behind: dict[Path, list[tuple[int, Edit]]] = defaultdict(list)
        self._edits: dict[str, Edit] = {}
        self._appended: dict[ir.Value, tuple[str, int]] = {}

    def take(self, edit: Edit, before: ir.ExternalTensor) -> None:
        path, (begin, _) = self._model.data.path(before), byte_range(before)
        alone = edit.value.const_value is before and begin not in self._aliased[path]
        (self._in_place if alone else self._behind)[path].append((begin, edit))

    def finish(self, named: Callable[[Path], str]) -> DataPlan:
        shards: dict[str, Container] = {}
        plans = []
        for number, path in enumerate(self._files):
            entries: dict[str, Entry] = {}
            plans.append(self._file(path, f"{number}", named(path), entries))
            shards[f"{number}"] = _DataFile(path, entries)
        return DataPlan(
            Plan(tuple(plans), {}, untied=False, notes=()),
            _DataFiles(self._model.path, shards, None, {}),
            self._edits,
            self._appended,
        )

    def _file(self, path: Path, origin: str, name: str, entries: dict[str, Entry]) -> FilePlan:
        parts: list[Part] = []
        position, size = 0, path.stat().st_size

        def copy_until(end: int) -> None:
            if end > position:
                kept = f"bytes {position} to {end} of {name}"
                entries[kept] = Entry("U8", (end - position,), position, end)
                parts.append(Part(kept, entries[kept], kept, ()))

        for begin, edit in sorted(self._in_place[path], key=lambda pair: pair[0]):
            copy_until(begin)
            known = self._name(edit)
            part = edit.part(known, known, begin)
            entries[known] = part.entry
            parts.append(part)
            position = part.entry.end
        copy_until(size)
        position = size
        for begin, edit in self._behind[path]:
            start = -(-position // ALIGNMENT) * ALIGNMENT
            if start > position:
                parts.append(_zeros(f"padding {position} of {name}", position, start))
            known = self._name(edit)
            part = edit.part(known, f"what {known} was", start)
            entries[f"what {known} was"] = Entry(dtype_of(edit.value), shape_of(edit.value), begin, begin + edit.nbytes)
            parts.append(part)
            self._appended[edit.value] = (name, start)
            position = part.entry.end
        return FilePlan(name, origin, b"", tuple(parts), follows_base=True, same_layout=position == size)

    def _name(self, edit: Edit) -> str:
        name = edit.name if edit.name not in self._edits else f"{edit.name} ({edit.value.name})"
        self._edits[name] = edit
        return name


def _zeros(name: str, begin: int, end: int) -> Part:
    """Bytes that are there to fill up."""
    value = Tensor("U8", (end - begin,), bytes(end - begin))
    target = Target(name=name, kind=Kind.FULL, layout=(), shape=value.shape, tensors={"value": value})
    return Part(name, Entry("U8", value.shape, begin, end), None, (target,))
