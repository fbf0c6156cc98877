"""Optional packages: imported when needed, and named with the line that installs them when absent."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from lora_registry.errors import MachineError, MissingPackageError


def require(package: str, extra: str) -> Any:
    """Import ``package``.

    Args:
        package: import name, ``torch`` or ``onnxruntime``.
        extra: the extra of loreg that brings it.

    Raises:
        MissingPackageError: it is not installed.
        MachineError: it is installed and cannot be imported.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise MachineError(f"{package} is installed but cannot be imported: {error}") from error
        raise MissingPackageError(package, extra) from error
    except ImportError as error:
        raise MachineError(f"{package} is installed but cannot be imported: {error}") from error
