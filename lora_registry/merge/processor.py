"""What computes the blocks: the CPU, or a device that they are sent to.

The engine reads, writes, hashes and keeps the journal; a processor says how large blocks are, brings the memory that
their bytes go through, and makes them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

import numpy as np

from lora_registry.errors import MissingPackageError
from lora_registry.merge.kernel import BlockKernel, Kernel, Read
from lora_registry.merge.plan import Part
from lora_registry.merge.ranges import Largest, for_caches
from lora_registry.ops.arrays import Array

if TYPE_CHECKING:
    from lora_registry.merge.options import Device


class Processor(Protocol):
    """What computes the blocks of one merge."""

    @property
    def workers(self) -> int:
        """Threads, where nobody says how many."""

    def elements(self, part: Part) -> int:
        """How many elements a block of ``part`` has, more or less. The same in every run, or no merge is resumed."""

    def ready(self, largest: Largest) -> AbstractContextManager[object]:
        """A context in which blocks of up to ``largest`` are computed, and after which nothing of it is in use.

        Raises:
            MachineError: there is not enough memory for them.
        """

    def buffer(self, size: int) -> Array:
        """New memory for the bytes of a block, uint8 (size,)."""

    def kernel(self, part: Part, dtype: str, read: Read) -> BlockKernel:
        """What makes the blocks of ``part``, whose elements in the base are ``dtype``; see :class:`Kernel`."""


class Cpu:
    """The cores of this machine, by numpy."""

    @property
    def workers(self) -> int:
        """As many as there are cores, at most four: the disk and the digests set the pace."""
        return min(cores(), 4)

    def elements(self, part: Part) -> int:
        """What a core's cache takes."""
        return for_caches(part)

    def ready(self, largest: Largest) -> AbstractContextManager[object]:
        """Nothing has to be prepared."""
        del largest
        return nullcontext()

    def buffer(self, size: int) -> Array:
        """Plain memory."""
        return np.empty(size, np.uint8)

    def kernel(self, part: Part, dtype: str, read: Read) -> Kernel:
        """The arithmetic of numpy."""
        return Kernel(part, dtype, read)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_for(device: Device) -> Processor:
    """The processor of a name.

    Raises:
        MissingPackageError: a device needs torch, which is not installed.
        MachineError: there is no such device, or its driver does not run.
    """
    if device == "cpu":
        return Cpu()
    try:
        from lora_registry.merge.accelerator import Accelerator
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError("torch", "torch") from error
    return Accelerator.cuda()
