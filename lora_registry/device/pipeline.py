"""Blocks from host memory to a device and back: one goes up, one is computed and one comes down at a time.

Each of the three has a stream of its own, and events keep a block's three steps in order. A PCI Express link carries
both directions at once, and the computation is a few percent of either, so that what is moved is moved at the speed of
the link. A block occupies one of :data:`LANES` sets of buffers on the device from its upload to the end of its
download; the computation has one workspace, since its stream does one block after the other. All of it is allocated
before the first block, on no stream that frees it, and given back after the last, so that nothing has to be recorded
with the allocator.

What a tensor needs before its first block, its factors above all, is made on a fourth stream: on that of the
computations, every new tensor would hold up the blocks of those that are under way.

The threads that call :meth:`Pipeline.run` wait in it for their own block, and let go of the interpreter lock.

On a device without streams (torch's CPU) each step is done when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Lock
from typing import TypeVar

import numpy as np
import torch

from lora_registry.device.failures import device_errors
from lora_registry.device.figures import COUNT
from lora_registry.device.opening import free_memory, named, settle
from lora_registry.device.workspace import ELEMENT, Workspace
from lora_registry.errors import MachineError
from lora_registry.ops.arrays import Array

LANES = 4
"""Blocks on the device: one for each stream, and one whose thread is between its download and the next upload."""

_Made = TypeVar("_Made")


@dataclass(frozen=True, slots=True)
class _Lane:
    read: torch.Tensor
    written: torch.Tensor
    figures: torch.Tensor
    told: torch.Tensor
    uploaded: _Event
    computed: _Event
    downloaded: _Event


Compute = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Workspace], None]
"""Makes the bytes of the second tensor out of those of the first and adds to the figures, all on the device."""


class Pipeline:
    """The way to ``device`` and back; use :meth:`ready` as a context around everything else.

    Args:
        device: a CUDA device, or torch's CPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._upload, self._compute, self._download, self._preparation = (_Stream(device) for _ in range(4))
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        self._workspace: Workspace | None = None
        self._computing = Lock()

    @contextmanager
    def ready(self, read: int, written: int, elements: int) -> Iterator[None]:
        """Memory for blocks of at most so many bytes and elements.

        Where it does not suffice, half as many elements are computed at a time.

        Raises:
            MachineError: there is not enough memory on the device, or of the kind that it reads from.
        """
        with device_errors(self.device):
            self._allocate(read, written, elements)
        try:
            yield
        finally:
            with suppress(RuntimeError):  # of a device that is lost, which has been told already
                settle(self.device)  # after an error, steps may be under way in these buffers
            self._lanes, self._workspace = SimpleQueue(), None

    def _allocate(self, read: int, written: int, elements: int) -> None:
        for count in (elements, (elements + 1) // 2):
            try:
                self._reserve(read, written, count)
            except torch.OutOfMemoryError:
                continue
            settle(self.device)  # what used this memory before, on other streams than ours
            return
        free, total = free_memory(self.device) or (0, 0)
        needed = LANES * (read + written) + ELEMENT * ((elements + 1) // 2)
        raise MachineError(
            f"a merge needs {needed:,} bytes of memory on {named(self.device)}, and {free:,} of {total:,} are free; "
            "end what else uses it, or compute on the CPU"
        )

    def _reserve(self, read: int, written: int, elements: int) -> None:
        """All of the memory or none: what was got before there was no more of it must not be in the way of less."""
        workspace = Workspace(elements, self._bytes(ELEMENT * elements))
        lanes = [self._lane(read, written) for _ in range(LANES)]
        self._workspace = workspace
        for lane in lanes:
            self._lanes.put(lane)

    def _bytes(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self.device)

    def _lane(self, read: int, written: int) -> _Lane:
        figures = torch.zeros(COUNT, dtype=torch.float64, device=self.device)
        told = torch.zeros(COUNT, dtype=torch.float64, device="cpu", pin_memory=self.device.type == "cuda")
        events = [_Event(self.device) for _ in range(3)]
        return _Lane(self._bytes(read), self._bytes(written), figures, told, *events)

    @property
    def elements(self) -> int:
        """How many elements are computed together at most; only while :meth:`ready`."""
        assert self._workspace is not None
        return self._workspace.elements

    def prepare(self, make: Callable[[], _Made]) -> _Made:
        """Make what computations use again and again: complete when this returns, so that any stream may use it.

        Nothing else waits for it. It must be kept until the last :meth:`run` that uses it has returned.

        Raises:
            MachineError: the device failed.
        """
        with device_errors(self.device):
            with self._preparation.current():
                made = make()
            self._preparation.settle()
        return made

    def buffer(self, size: int) -> Array:
        """Memory of this machine that the device reads and writes by itself, uint8 (size,).

        Raises:
            MachineError: there is not enough of it: it cannot be swapped out.
        """
        if self.device.type != "cuda":
            return np.empty(size, np.uint8)
        with device_errors(self.device):
            pinned: Array = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=True).numpy()
        return pinned

    def run(self, read: Array, out: Array, compute: Compute) -> list[float]:
        """Send ``read``, compute, and fetch ``out``; several threads may do so at a time.

        Args:
            read: bytes, in memory of :meth:`buffer`; elsewhere the copy waits for a detour.
            out: where the bytes that are made go; likewise.
            compute: asks for what is done with them, on the device.

        Returns:
            The figures, when everything is there.

        Raises:
            MachineError: the device failed.
        """
        lane = self._lanes.get()
        try:
            with device_errors(self.device):
                return self._run(lane, torch.from_numpy(read), torch.from_numpy(out), compute)
        finally:
            self._lanes.put(lane)

    def _run(self, lane: _Lane, source: torch.Tensor, target: torch.Tensor, compute: Compute) -> list[float]:
        assert self._workspace is not None, "ready() comes first"
        read, written = lane.read[: len(source)], lane.written[: len(target)]
        with self._upload.current():
            read.copy_(source, non_blocking=True)
        self._upload.mark(lane.uploaded)
        with self._computing:  # one block after the other, since they share a workspace
            self._compute.wait(lane.uploaded)
            with self._compute.current():
                lane.figures.zero_()
                compute(read, written, lane.figures, self._workspace)
            self._compute.mark(lane.computed)
        self._download.wait(lane.computed)
        with self._download.current():
            target.copy_(written, non_blocking=True)
            lane.told.copy_(lane.figures, non_blocking=True)
        self._download.mark(lane.downloaded)
        lane.downloaded.synchronize()
        told: list[float] = lane.told.tolist()
        return told


class _Event:
    """A point in a stream. A thread that waits for it sleeps, since the others need the cores."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(blocking=True) if device.type == "cuda" else None

    def synchronize(self) -> None:
        if self.event is not None:
            self.event.synchronize()


class _Stream:
    """Work on the device that is done in the order in which it was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def current(self) -> AbstractContextManager[None]:
        """What this thread asks for in the block is asked of this stream."""
        if self._stream is None:
            return nullcontext()
        current: AbstractContextManager[None] = torch.cuda.stream(self._stream)
        return current

    def settle(self) -> None:
        """Wait until everything that was asked for is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def mark(self, event: _Event) -> None:
        """Let ``event`` happen when everything that was asked for until now is done."""
        if self._stream is not None and event.event is not None:
            event.event.record(self._stream)

    def wait(self, event: _Event) -> None:
        """Do what is asked for from now on only after ``event``."""
        if self._stream is not None and event.event is not None:
            self._stream.wait_event(event.event)
