"""What is installed, what really runs, and the command that mends what does not."""

from __future__ import annotations

import platform
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from lora_registry import __version__
from lora_registry.adapter import Json
from lora_registry.errors import MachineError
from lora_registry.runtime import cuda_libraries, ort
from lora_registry.store.database import journal_mode, wal_is_safe
from lora_registry.store.location import registry_folder

PYTHON = (3, 11)
LITTLE_DISK = 1 << 30  # bytes free in the registry's folder below which there is a warning

_REQUIRED = ("click", "ml_dtypes", "numpy", "packaging", "platformdirs", "rich", "sqlalchemy", "threadpoolctl")
_OPTIONAL = {"onnx": "onnx", "onnx-ir": "onnx", "onnxscript": "export", "torch": "export", "transformers": "export"}
_WHEELS = ("onnxruntime", "onnxruntime-gpu")
_REINSTALL = (
    "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'loreg[ort]' (or 'loreg[gpu]' for NVIDIA GPUs)"
)


class Status(StrEnum):
    """How a check came out; a warning costs a feature, a problem breaks one that is installed."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what.
        status: how it came out.
        detail: what was found, in a few words.
        remedy: the command that mends it; "" where nothing is to be done.
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""

    def to_json(self) -> dict[str, Json]:
        """The check as a JSON object."""
        return {key: str(value) for key, value in asdict(self).items()}


def examine(home: str | Path | None = None) -> list[Check]:
    """Look at this machine.

    Nothing is changed. Providers are judged by running a MatMul on each with the fallback to the CPU
    switched off, not by what ONNX Runtime lists.

    Args:
        home: folder of the registry; None for the one that loreg would use.

    Raises:
        UsageError: ``home`` is a URL.
    """
    folder = registry_folder(home)
    return [
        _python(),
        Check("loreg", Status.OK, __version__),
        *_packages(),
        *_onnxruntime(),
        _sqlite(folder),
        _disk(folder),
    ]


def _python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] < PYTHON:
        return Check("python", Status.PROBLEM, version, f"install Python {PYTHON[0]}.{PYTHON[1]} or later")
    return Check("python", Status.OK, f"{version} on {platform.system()} {platform.machine()}")


def _packages() -> Iterator[Check]:
    for name in _REQUIRED:
        version = _version(name)
        missing = Check(name, Status.PROBLEM, "missing", "pip install --force-reinstall loreg")
        yield Check(name, Status.OK, version) if version else missing
    for name, extra in _OPTIONAL.items():
        version = _version(name)
        missing = Check(name, Status.WARNING, "missing", f"pip install 'loreg[{extra}]'")
        yield Check(name, Status.OK, version) if version else missing


def _onnxruntime() -> Iterator[Check]:
    """The wheels, then what really runs."""
    installed = {name: version for name in _WHEELS if (version := _version(name))}
    if not installed:
        yield Check("onnxruntime", Status.WARNING, "missing", "pip install 'loreg[ort]' (or 'loreg[gpu]')")
        return
    told = ", ".join(f"{name} {version}" for name, version in installed.items())
    if len(installed) > 1:
        yield Check("onnxruntime", Status.PROBLEM, f"{told}: they overwrite each other's files", _REINSTALL)
    try:
        module = ort.onnxruntime()
    except MachineError as error:
        yield Check("onnxruntime", Status.PROBLEM, str(error), _REINSTALL)
        return
    if len(installed) == 1:
        yield Check("onnxruntime", Status.OK, told)
    yield from _providers(module)
    if ort.PROVIDERS["cuda"] in module.get_available_providers():
        for name, version in cuda_libraries.found(module):
            status = Status.OK if version else Status.WARNING
            yield Check(name, status, version or "not found", "" if version else "pip install 'loreg[gpu]'")


def _providers(module: Any) -> Iterator[Check]:
    for name in module.get_available_providers():
        if name == "AzureExecutionProvider":
            continue  # in every wheel; it calls a web service, and runs no operators
        try:
            ort.prove(name)
        except MachineError as error:
            # A GPU wheel on a machine without GPU is only a large download.
            harmless = name != ort.PROVIDERS["cpu"] and not cuda_libraries.has_driver()
            required = name in ort.PROVIDERS.values() and not harmless
            status = Status.PROBLEM if required else Status.WARNING
            remedy = "pip install --force-reinstall 'loreg[gpu]'" if name == ort.PROVIDERS["cuda"] else ""
            yield Check(name, status, str(error), remedy if required else "")
        else:
            yield Check(name, Status.OK, "runs")


def _sqlite(folder: Path) -> Check:
    version = sqlite3.sqlite_version
    mode = journal_mode(_existing(folder))
    if mode == "wal":
        return Check("sqlite", Status.OK, f"{version}, write-ahead log")
    # The rollback journal is as safe; it lets readers wait for the writer.
    unsafe = not wal_is_safe(sqlite3.sqlite_version_info[:3])
    reason = "this version can lose data with a write-ahead log" if unsafe else "the file system is not a local one"
    return Check("sqlite", Status.OK, f"{version}, rollback journal: {reason}")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LITTLE_DISK:
        return Check("disk", Status.WARNING, detail, "loreg gc, or another folder in LOREG_HOME")
    return Check("disk", Status.OK, detail)


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that exists."""
    return next(each for each in (folder.absolute(), *folder.absolute().parents) if each.is_dir())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
