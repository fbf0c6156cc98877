"""The device that is computed on: there and working, or a line that says why not."""

from __future__ import annotations

import torch

from lora_registry.device.failures import device_errors, first_line
from lora_registry.errors import MachineError


def open_cuda() -> torch.device:
    """The CUDA device that torch is set to (``CUDA_VISIBLE_DEVICES`` chooses), after a first sum on it.

    Raises:
        MachineError: torch is built without CUDA, there is no driver or no GPU, the driver is too old, or the GPU is
            not one that this build of torch has code for.
    """
    if torch.version.cuda is None and torch.version.hip is None:
        raise MachineError(
            f"torch {torch.__version__} is built without CUDA: install a build with it (pytorch.org), or compute on "
            "the CPU"
        )
    try:
        torch.cuda.init()
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        # No driver, one that is too old, or no GPU; each says so in its first line.
        raise MachineError(f"CUDA does not start: {first_line(error)}") from error
    device = torch.device("cuda", torch.cuda.current_device())
    with device_errors(device):
        if torch.ones(2, device=device).sum().item() != 2:
            raise MachineError(f"{named(device)} cannot add two numbers")
    return device


def named(device: torch.device) -> str:
    """The device as its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"torch's {device.type}"


def settle(device: torch.device) -> None:
    """Wait until nothing is under way on the device; what failed there until now is raised here."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> tuple[int, int] | None:
    """Bytes of memory that are free on the device, and all of them; None where it has none of its own."""
    if device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return int(free), int(total)
