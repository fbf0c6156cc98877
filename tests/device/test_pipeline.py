"""The way to a device and back, on torch's CPU: memory, and what the process has chosen."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from lora_registry.device.pipeline import Pipeline
from lora_registry.device.workspace import Workspace

CPU = torch.device("cpu")


def negate(read: torch.Tensor, written: torch.Tensor, figures: torch.Tensor, workspace: Workspace) -> None:
    """A computation."""
    del workspace
    torch.sub(255, read, out=written)
    figures += 1


def test_a_default_device_of_the_process_is_not_asked() -> None:
    """Buffers of this machine are in its memory, and what comes back is numbers."""
    pipeline = Pipeline(CPU)
    torch.set_default_device("meta")
    try:
        with pipeline.ready(100, 100, 100):
            read, out = pipeline.buffer(100), pipeline.buffer(100)
            read[:] = np.arange(100)
            assert pipeline.run(read, out, negate) == [1.0] * 6
    finally:
        torch.set_default_device(None)
    assert np.array_equal(out, 255 - read)


def test_what_was_too_much_is_given_back_before_less_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the memory of the first attempt would be missing in the second."""
    allocate = Pipeline._bytes
    first: list[weakref.ref[torch.Tensor]] = []
    alive: list[list[bool]] = []

    def limited(self: Pipeline, size: int) -> torch.Tensor:
        alive.append([each() is not None for each in first])
        if len(alive) == 3:  # the workspace and one buffer are there
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        made = allocate(self, size)
        if len(alive) < 3:
            first.append(weakref.ref(made))
        return made

    monkeypatch.setattr(Pipeline, "_bytes", limited)
    with Pipeline(CPU).ready(1000, 1000, 100):
        assert alive[2] == [True, True]
        assert alive[3] == [False, False]
