"""The initializers that a merge changes: what each starts from, and the targets that change it or parts of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from lora_registry.adapter import Target
from lora_registry.format.container import Entry
from lora_registry.merge.kernel import Kernel, Read, Room
from lora_registry.merge.packed import PackedKernel, PackedPart
from lora_registry.merge.plan import Part
from lora_registry.merge.processor import Cpu
from lora_registry.merge.ranges import row_of
from lora_registry.merge.receipt import TensorRecord
from lora_registry.onnx.model import OnnxModel, dtype_of, shape_of
from lora_registry.onnx.patch import Patch
from lora_registry.onnx.resolution import Carrier, Resolution, ResolvedBase
from lora_registry.onnx.sites import Site
from lora_registry.onnx.stored import as_stored
from lora_registry.onnx.window import Window
from lora_registry.ops.arrays import Array, numpy_dtype
from lora_registry.ops.fidelity import Fidelity, fidelity


@dataclass(frozen=True, slots=True)
class Piece:
    """One target's share of an edit.

    Attributes:
        resolution: the target, and how it was found.
        target: its change as the initializer stores the tensor.
        window: the part of the initializer that it changes; None where it is all of it.
    """

    resolution: Resolution
    target: Target
    window: Window | None


@dataclass(slots=True, eq=False)
class Edit:
    """An initializer that gets other elements.

    Attributes:
        value: the initializer.
        before: the tensor that it starts from; None for a bias of zeros that was not in the graph.
        pieces: what changes it.
        fidelity: what became of the changes; known when they are written.
    """

    value: ir.Value
    before: ir.TensorProtocol | None
    pieces: list[Piece] = field(default_factory=list)
    fidelity: Fidelity | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the initializer."""
        tensor = self.value.const_value
        assert tensor is not None
        return int(tensor.nbytes)

    @property
    def name(self) -> str:
        """What is said of it when its result cannot be written."""
        return " and ".join(piece.target.name for piece in self.pieces)

    def part(self, name: str, source: str, begin: int) -> Part:
        """The edit as the engine of merges knows tensors, at offset ``begin`` of its file."""
        entry = Entry(dtype_of(self.value), shape_of(self.value), begin, begin + self.nbytes)
        targets = tuple(piece.target for piece in self.pieces)
        windows = tuple(piece.window for piece in self.pieces if piece.window is not None)
        if windows:
            return PackedPart(name, entry, source, targets, windows=windows)
        return Part(name, entry, source, targets)

    def make(self, before: Array | None) -> Array:
        """The new elements, in memory.

        Args:
            before: the old ones, as stored; None stands for zeros.

        Raises:
            InvalidInputError: a result is not finite, or not in the range of the type.
        """
        part = self.part(self.name, self.name, 0)
        dtype = numpy_dtype(part.entry.dtype)
        old = np.zeros(part.entry.shape, dtype) if before is None else np.ascontiguousarray(before)
        flat, new = old.reshape(-1), np.empty(old.size, dtype)
        kernel = kernel_for(part, lambda start, stop: flat[start:stop])
        row = row_of(part)
        step = max(1, Cpu().elements(part) // row) * row if row else 1
        room, sums = Room(min(step, flat.size)), []
        with np.errstate(all="ignore"):  # what goes wrong shows in the result, which is checked
            for start in range(0, flat.size, step):
                stop = min(start + step, flat.size)
                read, out = flat[start:stop].view(np.uint8), new[start:stop].view(np.uint8)
                figures = kernel.run(start, stop, read, out, room)
                sums += [figures] if figures is not None else []
        self.fidelity = fidelity(sums) if sums else None
        return new.reshape(old.shape)

    def records(self) -> list[TensorRecord]:
        """One record for each of the targets."""
        return [
            TensorRecord(
                name=str(self.value.name),
                target=piece.resolution.target.name,
                kind=piece.resolution.target.kind,
                dtype=dtype_of(self.value),
                fidelity=self.fidelity,
                evidence=piece.resolution.evidence(),
            )
            for piece in self.pieces
        ]


def kernel_for(part: Part, read: Read) -> Kernel | PackedKernel:
    """What makes the blocks of a tensor that keeps its element type."""
    if isinstance(part, PackedPart):
        return PackedKernel(part, part.entry.dtype, read)
    return Kernel(part, part.entry.dtype, read)


class Edits:
    """All of a merge, made in the graph at once; the elements follow when they are written.

    Attributes:
        patch: the graph.
        all: what changes, in the order of the targets.
        structural: whether nodes or initializers were added, so that the graph is another one.
        kept: records of changes for which no initializer is edited: they are kept beside a quantized weight.
    """

    def __init__(self, model: OnnxModel, resolutions: Sequence[Resolution]) -> None:
        self.patch = Patch(model)
        self.all: list[Edit] = []
        self.structural = False
        self.kept: list[TensorRecord] = []
        self._model = model
        self._base = ResolvedBase(model, tuple(resolutions))
        self._by_use: dict[tuple[ir.Value, frozenset[Site]], Edit] = {}
        for resolution in resolutions:
            if resolution.carriers:
                for carrier in resolution.carriers:
                    self._change(resolution, carrier)
            else:
                self._add_bias(resolution)

    def records(self) -> tuple[TensorRecord, ...]:
        """One record for every target of every initializer that was written; complete once the files are."""
        return (*(record for edit in self.all for record in edit.records()), *self.kept)

    def elements(self, edit: Edit) -> Array:
        """The new elements of an edit, in memory."""
        if edit.before is None:
            return edit.make(None)
        if isinstance(edit.before, ir.ExternalTensor):
            return edit.make(self._model.data.array(edit.before))
        return edit.make(edit.before.numpy())

    def _change(self, resolution: Resolution, carrier: Carrier) -> None:
        target = resolution.target
        use = (carrier.value, frozenset(carrier.sites))
        edit = self._by_use.get(use) if carrier.window is not None else None
        if edit is None:
            edit = self._begin(resolution, carrier)
            self._by_use[use] = edit
        stored = as_stored(target, carrier.transposed, lambda: self._base.array(target.name))
        edit.pieces.append(Piece(resolution, stored, carrier.window))
        self.patch.keep_manifest_true(resolution, edit.value, carrier.transposed)

    def _begin(self, resolution: Resolution, carrier: Carrier) -> Edit:
        """The edit of an initializer, or of a copy of it where others read it too."""
        edit = Edit(carrier.value, carrier.value.const_value)
        if carrier.shared:
            name = _clone_name(resolution.target, carrier)
            edit.value = self.patch.clone(carrier.value, carrier.sites, name, lambda: self.elements(edit))
            self.structural = True
        else:
            self.patch.replace(carrier.value, lambda: self.elements(edit))
        self.all.append(edit)
        return edit

    def _add_bias(self, resolution: Resolution) -> None:
        target = resolution.target
        edit = Edit(resolution.open_gemms[0].inputs[1], None, [Piece(resolution, target, None)])
        length = self._base.shape(target.name)[0]
        edit.value = self.patch.add_bias(resolution.open_gemms, target.name, length, lambda: self.elements(edit))
        self.patch.keep_manifest_true(resolution, edit.value, transposed=False)
        self.structural = True
        self.all.append(edit)


def _clone_name(target: Target, carrier: Carrier) -> str:
    """Only what is stored as in the checkpoint takes the checkpoint's name: the resolver relies on it."""
    if carrier.window is not None:
        return f"{carrier.value.name}.changed"
    return f"{target.name}.transposed" if carrier.transposed else target.name
