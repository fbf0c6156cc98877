"""A patched model as files: ``out.onnx`` and, where the base had data files, ``out.onnx.data``.

The base's data files are copied as they are, by the file system where it can share blocks, and only the
ranges that change are written again; so the cost is that of a copy, and untouched bytes are the base's.
Both files are made in a folder of their own beside ``out`` and take their names at the end, the data first.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, NotAllowedError, NotFoundError
from lora_registry.format.files import claim, refuse_existing, staging_folder, storage_errors, sync_folder
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.patch import Patch
from lora_registry.onnx.writer import Writer, write_bytes
from lora_registry.progress import Progress


@dataclass(frozen=True, slots=True)
class SavedFile:
    """One file that was written: its name, its size in bytes, its sha256."""

    name: str
    size: int
    digest: Digest


Sidecar: TypeAlias = "Callable[[tuple[SavedFile, ...]], bytes]"
"""Makes the content of a file that describes the others, such as a receipt."""


def save(
    patch: Patch,
    out: Path,
    *,
    sidecar: tuple[Path, Sidecar] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[SavedFile, ...]:
    """Write the patched model.

    Args:
        patch: the edits.
        out: the ``.onnx``; data, if there are any, go to ``<out>.data``.
        sidecar: path in the folder of ``out``, and maker, of one more file that appears with the model.
        overwrite: whether outputs may exist.
        progress: called with the number of initializers made anew, and of all.

    Returns:
        The model, and the data file if there is one.

    Raises:
        ConflictError: an output exists and ``overwrite`` is false.
        NotAllowedError: an output is a file of the base.
        NotFoundError: the folder of ``out`` does not exist.
        MachineError: the disk is full, or failed. Nothing stays behind.
    """
    data = out.with_name(out.name + ".data")
    outputs = [data, out] if sidecar is None else [data, sidecar[0], out]
    refuse_outputs(patch.model, outputs, overwrite)
    with storage_errors(out), staging_folder(out) as staging:
        has_data = Writer(patch, staging, data.name, progress).write(staging / out.name)
        saved = tuple(_record(staging / path.name) for path in ((out, data) if has_data else (out,)))
        if sidecar is not None:
            write_bytes(staging / sidecar[0].name, sidecar[1](saved))
        publish(staging, outputs if has_data else outputs[1:], overwrite)
        if overwrite and not has_data:
            data.unlink(missing_ok=True)  # of the model that was overwritten
    return saved


def _record(path: Path) -> SavedFile:
    return SavedFile(path.name, path.stat().st_size, Digest.of_file(path))


def refuse_outputs(model: OnnxModel, outputs: list[Path], overwrite: bool) -> None:
    """Refuse places that are none for the files of a patched ``model``, of which the graph is the last.

    Raises:
        ConflictError: one exists and ``overwrite`` is false.
        NotAllowedError: one is a file of the base.
        NotFoundError: there is no such folder.
    """
    base = {path.resolve() for path in model.files()}
    for path in outputs:
        if path.resolve() in base:
            raise NotAllowedError(f"{path} belongs to the base, which is never changed; choose another name")
        if not overwrite:
            refuse_existing(path)
    if not outputs[-1].parent.is_dir():
        raise NotFoundError(f"no such folder: {outputs[-1].parent}")


def publish(staging: Path, files: list[Path], overwrite: bool) -> None:
    """Give the finished files their names; take them back if one of the names was taken meanwhile.

    Args:
        staging: where they are, under their names in the folder of the last.
        files: their final places, the graph last.
        overwrite: whether these may be taken.
    """
    named: list[Path] = []
    try:
        for path in files:
            made = staging / path.relative_to(files[-1].parent)
            path.parent.mkdir(parents=True, exist_ok=True)
            if overwrite:
                made.replace(path)
            else:
                claim(made, path)
            named.append(path)
    except (OSError, ConflictError):
        if not overwrite:
            for path in named:
                with suppress(OSError):
                    path.unlink()
        raise
    for folder in {path.parent for path in files}:
        sync_folder(folder)
