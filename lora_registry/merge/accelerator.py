"""A GPU as what computes the blocks: changes and conversions of floats go there, the rest stays with numpy.

Blocks are large, because a block costs some forty launches, whatever its size. What the device finds suspect, a result
that is not finite or out of range, is computed again by numpy, which knows whether the base was like that, and says
what is wrong otherwise. Whole values of the adapter, and integers, are made by numpy in the first place: there is
nothing to compute that would be worth the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from threading import Lock
from typing import Self

import numpy as np
import torch

from lora_registry.adapter import Kind
from lora_registry.device.block import computed_in, make_run
from lora_registry.device.change import Change
from lora_registry.device.elements import torch_dtype
from lora_registry.device.figures import is_sound, sums_of
from lora_registry.device.opening import named, open_cuda
from lora_registry.device.pipeline import Pipeline
from lora_registry.device.precision import full_precision
from lora_registry.device.workspace import Workspace
from lora_registry.dtypes import DTYPES
from lora_registry.errors import MachineError
from lora_registry.merge.kernel import BlockKernel, Read, Room
from lora_registry.merge.plan import Part
from lora_registry.merge.processor import Cpu, cores
from lora_registry.merge.ranges import Largest, for_caches, row_of
from lora_registry.ops.arrays import Array, numpy_dtype
from lora_registry.ops.change import RowMerger
from lora_registry.ops.fidelity import Sums

ELEMENTS = 1 << 25
"""Elements of a block that a device computes: 64 MB of bfloat16."""


class Accelerator:
    """A device of torch.

    Args:
        device: which.
    """

    def __init__(self, device: torch.device) -> None:
        self._pipeline = Pipeline(device)
        self._cpu = Cpu()

    @classmethod
    def cuda(cls) -> Self:
        """The GPU of this machine.

        Raises:
            MachineError: there is none that works.
        """
        return cls(open_cuda())

    @property
    def workers(self) -> int:
        """As many as there are cores, at most eight: they fill and empty the buffers, slower than the link does."""
        return min(cores(), 8)

    def elements(self, part: Part) -> int:
        """More on the device than in a core's cache."""
        return ELEMENTS if _is_for_device(part) else for_caches(part)

    @contextmanager
    def ready(self, largest: Largest) -> Iterator[None]:
        """Memory on the device, and full precision."""
        with full_precision(), self._pipeline.ready(largest.read, largest.written, largest.elements):
            yield

    def buffer(self, size: int) -> Array:
        """Memory that the device reads and writes by itself."""
        return self._pipeline.buffer(size)

    def kernel(self, part: Part, dtype: str, read: Read) -> BlockKernel:
        """The device's where it is worth the way, numpy's for the rest."""
        if not _is_for_device(part):
            return self._cpu.kernel(part, dtype, read)
        return AcceleratedKernel(self._pipeline, part, dtype, read)


def _is_for_device(part: Part) -> bool:
    return (
        type(part) is Part  # not one of several tensors side by side
        and part.weight is None  # nor one that is quantized again as a whole
        and part.source is not None
        and DTYPES[part.entry.dtype].floating
        and not any(target.kind is Kind.FULL for target in part.changes)
    )


class AcceleratedKernel:
    """What is done with every block of one tensor on a device; :class:`~lora_registry.merge.kernel.Kernel` there.

    Args:
        pipeline: the way to the device.
        part: the tensor, as the plan has it; a change of floats, or a conversion.
        dtype: its element type in the base.
        read: for a change that needs a pass over the whole tensor before the first block.

    Raises:
        MachineError: a row is longer than what the device has memory for; or it failed.
    """

    def __init__(self, pipeline: Pipeline, part: Part, dtype: str, read: Read) -> None:
        self._pipeline = pipeline
        self._part, self._dtype, self._read = part, dtype, read
        self._read_as, self._write_as = torch_dtype(dtype), torch_dtype(part.entry.dtype)
        self._row = row_of(part)
        if self._row > pipeline.elements:
            raise MachineError(
                f"{part.name}: a row of {self._row:,} elements needs more memory than is free on "
                f"{named(pipeline.device)}; compute on the CPU"
            )
        self._change: Change | None = None
        if part.changes:
            wide = computed_in(self._read_as, self._write_as) == torch.float64
            numpy_type = np.float64 if wide else np.float32
            mergers = [RowMerger(target, part.entry.shape, numpy_type) for target in part.changes]
            self._change = pipeline.prepare(partial(self._changed_by, mergers, read))
        self._lock = Lock()
        self._again: BlockKernel | None = None

    def _changed_by(self, mergers: list[RowMerger], read: Read) -> Change:
        change = Change(mergers, self._pipeline.device)
        if change.needs_norms:

            def upload(start: int, stop: int) -> torch.Tensor:
                elements = np.array(read(start, stop)).view(np.uint8)  # a copy that may be written to, as torch asks
                return torch.from_numpy(elements).to(self._pipeline.device).view(self._read_as)

            change.measure_norms(upload, list(self._runs(0, mergers[0].size)))
        return change

    def _runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Whole rows, as many as are computed together."""
        step = max(1, self._pipeline.elements // self._row) * self._row
        for begin in range(start, stop, step):
            yield begin, min(begin + step, stop)

    def run(self, start: int, stop: int, read: Array, out: Array, room: Room) -> Sums | None:
        """Make the elements ``start`` to ``stop``; see :meth:`~lora_registry.merge.kernel.Kernel.run`.

        Raises:
            InvalidInputError: a result is not finite although the base is, or not in the range of the output's type.
            MachineError: the device failed.
        """
        told = self._pipeline.run(read, out, partial(self._make, start, stop))
        if not is_sound(told):
            return self._run_again(start, stop, read, out, room)
        return sums_of(told, stop - start) if self._part.changes else None

    def _make(
        self,
        start: int,
        stop: int,
        read: torch.Tensor,
        written: torch.Tensor,
        figures: torch.Tensor,
        workspace: Workspace,
    ) -> None:
        stored, rounded = read.view(self._read_as), written.view(self._write_as)
        for begin, end in self._runs(start, stop):
            run = slice(begin - start, end - start)
            make_run(self._change, begin, stored[run], rounded[run], figures, workspace)

    def _run_again(self, start: int, stop: int, read: Array, out: Array, room: Room) -> Sums | None:
        """The same by numpy, in blocks of its size."""
        with self._lock:
            self._again = self._again or Cpu().kernel(self._part, self._dtype, self._read)
        step = max(1, for_caches(self._part) // self._row) * self._row
        taken, made = (numpy_dtype(name).itemsize for name in (self._dtype, self._part.entry.dtype))
        found = []
        for begin in range(0, stop - start, step):
            end = min(begin + step, stop - start)
            piece = (read[begin * taken : end * taken], out[begin * made : end * made])
            found.append(self._again.run(start + begin, start + end, *piece, room))
        sums = [each for each in found if each is not None]
        return Sums(*(sum(column) for column in zip(*sums, strict=True))) if sums else None
