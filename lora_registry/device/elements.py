"""Element types of torch by safetensors' names, arrays as tensors, and the one rounding."""

from __future__ import annotations

import numpy as np
import torch

from lora_registry.adapter import Tensor
from lora_registry.dtypes import BY_TORCH, DTYPES
from lora_registry.errors import UnsupportedError
from lora_registry.ops.arrays import Array

_LARGEST_E4M3 = torch.finfo(torch.float8_e4m3fn).max


def torch_dtype(name: str) -> torch.dtype:
    """The type in torch of a safetensors dtype; KeyError for an unknown name."""
    found: torch.dtype = getattr(torch, DTYPES[name].torch)
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """The safetensors name of a type of torch.

    Raises:
        UnsupportedError: safetensors has no such type, or loreg does not carry it.
    """
    known = BY_TORCH.get(str(dtype).removeprefix("torch."))
    if known is None:
        raise UnsupportedError(f"elements of type {dtype} have no place in a safetensors file")
    return known.name


def from_numpy(array: Array, device: torch.device) -> torch.Tensor:
    """A copy of an array on ``device``, of the same type and shape; numpy's own types only."""
    return torch.from_numpy(np.array(array, order="C")).to(device)


def from_tensor(tensor: Tensor, device: torch.device) -> torch.Tensor:
    """A copy of a tensor of an adapter on ``device``, of the same type and shape."""
    dtype = torch_dtype(tensor.dtype)
    if not tensor.nbytes:
        return torch.empty(tensor.shape, dtype=dtype, device=device)
    return torch.frombuffer(bytearray(tensor.data), dtype=dtype).reshape(tensor.shape).to(device)


def write_rounded(wanted: torch.Tensor, out: torch.Tensor) -> None:
    """Round once, to nearest, ties to even.

    torch goes from float64 to 16 bits and fewer by way of float32, which would round twice.

    Args:
        wanted: float32 or float64, flat.
        out: of any float type, as long. What is beyond float8_e4m3fn's range is clamped, see :func:`beyond`.
    """
    if wanted.dtype == torch.float64 and out.dtype not in (torch.float64, torch.float32):
        out.copy_(_to_odd(wanted))
    else:
        out.copy_(wanted)


def beyond(wanted: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """How many elements torch would clamp without a word, as a tensor of no axes; None where the type has infinity."""
    if dtype != torch.float8_e4m3fn:
        return None  # overflow is infinite, and seen in the error
    return (wanted.abs() > _LARGEST_E4M3).sum()


def _to_odd(wide: torch.Tensor) -> torch.Tensor:
    """float64 to float32, rounded to odd: rounding the result once more is as good as rounding once.

    Boldo and Melquiond 2005, "When double rounding is odd"; as in :func:`lora_registry.ops.arrays.round_to`.
    """
    near = wide.float()
    exact = near.double()
    bits = near.view(torch.int32) - (exact.abs() > wide.abs()).int()  # toward zero
    bits |= (wide.isfinite() & (exact != wide)).int()
    return bits.view(torch.float32)
