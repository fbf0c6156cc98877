"""CUDA as ONNX Runtime would find it: the driver, and the versions of the libraries that can be loaded."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lora_registry.runtime.quiet import quiet

_DRIVER = Path("/dev/nvidiactl")


def has_driver() -> bool:
    """Whether the kernel of this machine drives an NVIDIA GPU."""
    return _DRIVER.exists()


def found(onnxruntime: Any) -> Iterator[tuple[str, str | None]]:
    """Name and version of the CUDA runtime and cuDNN; None for one that cannot be loaded.

    Args:
        onnxruntime: the module of a GPU wheel; its major version of CUDA is looked for.
    """
    with quiet():
        onnxruntime.preload_dlls()  # loads them from pip's folders; says nothing of use
    major = str(getattr(onnxruntime, "cuda_version", "") or "13").split(".")[0]
    yield "CUDA", _cuda_runtime(f"libcudart.so.{major}")
    yield "cuDNN", _cudnn("libcudnn.so.9")


def _cuda_runtime(library: str) -> str | None:
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        return None
    version = ctypes.c_int()
    if loaded.cudaRuntimeGetVersion(ctypes.byref(version)) != 0:
        return None
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def _cudnn(library: str) -> str | None:
    try:
        loaded = ctypes.CDLL(library)
    except OSError:
        return None
    loaded.cudnnGetVersion.restype = ctypes.c_size_t
    version = loaded.cudnnGetVersion()
    return f"{version // 10000}.{version % 10000 // 100}.{version % 100}"
