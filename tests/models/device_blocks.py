"""The same blocks made by numpy and on a device, to be held against each other."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import torch

from lora_registry.adapter import Kind, Target
from lora_registry.device.pipeline import Pipeline
from lora_registry.format.container import Entry
from lora_registry.merge.accelerator import AcceleratedKernel
from lora_registry.merge.kernel import Kernel, Room
from lora_registry.merge.plan import Part
from lora_registry.ops.arrays import Array, as_bytes, from_array, numpy_dtype, round_to
from lora_registry.ops.fidelity import Sums

CPU = torch.device("cpu")
RARE = 1e-4
"""Part of the elements that may be one ulp off."""


def ordered(array: Array) -> np.ndarray:
    """Floats as integers that count ulps: neighbors differ by one, and both zeros are 0."""
    bits = array.view(f"i{array.itemsize}").astype(np.int64)
    return np.where(bits < 0, -(bits & ((1 << (8 * array.itemsize - 1)) - 1)), bits)


def blocks(
    target: Target | None,
    weight: Array,
    written: str,
    *,
    most: int = 1 << 20,
    steps: int = 1,
    device: torch.device = CPU,
) -> tuple[tuple[Array, Sums | None], tuple[Array, Sums | None]]:
    """What numpy and the device make of ``weight``: the tensor, and the figures.

    Args:
        target: the change; None converts.
        weight: W.
        written: type of the output.
        most: elements that the device computes together.
        steps: blocks.
        device: which.
    """
    entry = Entry(written, weight.shape, 0, weight.size * numpy_dtype(written).itemsize)
    part = Part("w", entry, "w", () if target is None else (target,))
    stored = from_array(weight).dtype
    flat, size = weight.reshape(-1), weight.size

    def read(start: int, stop: int) -> Array:
        return flat[start:stop].copy()

    pipeline = Pipeline(device)
    taken = np.frombuffer(as_bytes(flat), np.uint8).copy()
    made = []
    with ExitStack() as stack, np.errstate(all="ignore"):
        stack.enter_context(pipeline.ready(taken.size, entry.end, min(most, size)))
        for kernel in (Kernel(part, stored, read), AcceleratedKernel(pipeline, part, stored, read)):
            out, found = np.empty(entry.end, np.uint8), []
            row = flat.size // len(weight) if target is None or target.kind is not Kind.EXPERTS else weight.shape[-1]
            for rows in np.array_split(np.arange(size // row), steps):
                start, stop = int(rows[0]) * row, (int(rows[-1]) + 1) * row
                place = (entry.end // size, weight.itemsize)
                piece = (taken[start * place[1] : stop * place[1]], out[start * place[0] : stop * place[0]])
                found.append(kernel.run(start, stop, *piece, Room(size)))
            sums = [each for each in found if each is not None]
            made.append((out.view(numpy_dtype(written)), Sums(*map(sum, zip(*sums, strict=True))) if sums else None))
    return made[0], made[1]


def weights(target: Target, stored: str) -> Array:
    """W for ``target``."""
    shape = target.shape or (700, 64)
    return round_to(np.random.default_rng(3).normal(size=shape), stored)
