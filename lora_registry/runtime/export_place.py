"""Where an export goes: one ``.onnx`` with what belongs beside it, or a folder; whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lora_registry.errors import ConflictError, NotFoundError
from lora_registry.format.files import refuse_existing, staging_folder, storage_errors, sync_folder

ONNX = ".onnx"


def is_folder(out: Path) -> bool:
    """Whether an output of this name is a folder."""
    return out.suffix != ONNX


def data_path(path: Path) -> Path:
    """Where the weights of ``path`` go when they do not stand in it."""
    return path.with_name(f"{path.name}.data")


def receipt_of(path: Path) -> Path:
    """Where the receipt of a merge on export goes."""
    return path.with_name(f"{path.name}.receipt.json")


def check_free(out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, to write over what exists or where nothing can be written.

    Raises:
        NotFoundError: the folder that is to hold ``out`` does not exist.
        ConflictError: the output exists and ``overwrite`` is false, or is a folder that no export made.
    """
    if not out.parent.is_dir():
        raise NotFoundError(f"no such folder: {out.parent}")
    if not overwrite:
        refuse_existing(*([out] if is_folder(out) else [out, data_path(out), receipt_of(out)]))
    elif is_folder(out) and os.path.lexists(out) and not is_export(out):
        raise ConflictError(f"{out} exists and is not the output of an export; remove it or choose another name")


def is_export(folder: Path) -> bool:
    """Whether something is a folder with a graph and a configuration, and no weights of any other kind."""
    return (
        any(folder.glob(f"*{ONNX}"))
        and (folder / "config.json").is_file()
        and not any(folder.glob("*.safetensors"))
        and not any(path.is_dir() for path in folder.iterdir())
    )


@contextmanager
def publishing(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` to make files in under their final names, which they get when the block ends well.

    Call :func:`check_free` first. Where ``out`` is a file, the data are in place before the graph that points to them.

    Raises:
        NotAllowedError: the folder may not be written.
        MachineError: the disk is full, or failed.
    """
    with storage_errors(out), staging_folder(out) as staging:
        made = staging / "made"
        made.mkdir()
        yield made
        for path in made.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(made)
        if is_folder(out):
            if out.exists():
                out.rename(staging / "replaced")
            made.rename(out)
        else:
            _take_files(made, out)
        sync_folder(out.parent)


def _take_files(made: Path, out: Path) -> None:
    for path in (data_path(out), receipt_of(out), out):
        if (made / path.name).exists():
            (made / path.name).replace(path)
        else:
            path.unlink(missing_ok=True)  # of the model that is overwritten
