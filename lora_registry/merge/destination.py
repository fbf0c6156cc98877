"""Where the output goes: whether it may, whether there is room, and how it takes its place."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from lora_registry.errors import ConflictError, MachineError, NotAllowedError, NotFoundError, UsageError
from lora_registry.format.files import refuse_existing
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.receipt import FOLDER_RECEIPT, receipt_path
from lora_registry.merge.staging import Staging, folder_for

SPARE = 16 << 20
"""Bytes that must stay free: receipt, folders, journals of the merge and of the file system."""


def check_destination(base: Checkpoint, out: Path, *, overwrite: bool) -> None:
    """Refuse a place that is none for the output of a merge.

    Raises:
        ConflictError: it is taken, or by something that no merge made.
        NotAllowedError: it is the base, lies inside of it, or holds it.
        NotFoundError: there is no such folder.
        UsageError: a folder for a file, or a file for a folder.
    """
    if not base.is_folder and out.suffix != base.written_suffix:
        raise UsageError(f"{out}: the base is one file, so the output must be called *{base.written_suffix}")
    if base.is_folder and out.suffix in (".onnx", ".safetensors", ".gguf"):
        hint = "; merge into the .onnx that loreg export makes of it" if out.suffix == ".onnx" else ""
        raise UsageError(f"{out}: the base is a folder, so the output is one too, and this is the name of a file{hint}")
    if not out.parent.is_dir():
        raise NotFoundError(f"no such folder: {out.parent}")
    here, there = out.resolve(), base.path.resolve()
    if here == there or (base.is_folder and there in here.parents) or here in there.parents:
        raise NotAllowedError(f"{out} is, or lies in, or holds the base, which is never changed; choose another place")
    if not overwrite:
        refuse_existing(out, *(() if base.is_folder else (receipt_path(out),)))
    replaceable = (out / FOLDER_RECEIPT).is_file() if base.is_folder else not out.is_dir()
    if os.path.lexists(out) and not replaceable:
        raise ConflictError(f"{out} exists and is not the output of a merge; remove it or choose another name")


def check_room(out: Path, needed: int) -> None:
    """Refuse a disk that is too small.

    Args:
        out: the output; what an earlier merge into it left, and this one replaces or goes on with, counts as free.
        needed: bytes of all its files.

    Raises:
        MachineError: there is less room.
    """
    free = free_room(out)
    if needed + SPARE > free:
        raise MachineError(
            f"{out} needs {needed:,} bytes, {SPARE:,} to spare, and {out.parent} has {free:,} free; nothing was written"
        )


def free_room(out: Path) -> int:
    """Bytes that a merge into ``out`` can use."""
    left = folder_for(out)
    taken = sum(path.stat().st_blocks * 512 for path in left.rglob("*") if path.is_file()) if left.is_dir() else 0
    return shutil.disk_usage(out.parent).free + taken


def publish(base: Checkpoint, staging: Staging, out: Path) -> None:
    """Give what was made its final name."""
    if base.is_folder:
        staging.take_folder()
    else:
        staging.take_files({FOLDER_RECEIPT: receipt_path(out), base.written_name(base.path.name): out})
