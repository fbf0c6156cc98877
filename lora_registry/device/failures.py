"""What torch raises when a device fails, as one line about this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lora_registry.errors import MachineError

_OF_DEVICES = ("CUDA", "cuBLAS", "CUBLAS", "cuSOLVER", "cusolver", "HIP", "NVML")
"""In messages of plain RuntimeErrors, by which torch 2.9 to 2.13 still tells of libraries that failed."""


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Turn failures of ``device`` in the block into errors; others pass.

    Raises:
        MachineError: its memory is used up; or it, its driver or one of its libraries failed.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MachineError(
            f"the memory of {device} is used up ({first_line(error)}); end what else uses it, or compute on the CPU"
        ) from error
    except RuntimeError as error:
        if not (isinstance(error, torch.AcceleratorError) or any(name in str(error) for name in _OF_DEVICES)):
            raise
        raise MachineError(f"{device} failed: {first_line(error)}; if it fails again, compute on the CPU") from error


def first_line(error: BaseException) -> str:
    """The first line of a message, of which torch makes long ones."""
    return str(error).strip().partition("\n")[0].rstrip(".")
