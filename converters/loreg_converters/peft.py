"""Hugging Face PEFT's LoRA, both ways, and its LoHa and LoKr, which are read.

What maps to what, and what is lost: ``spec/mappings/peft.md``.
"""

from __future__ import annotations

from pathlib import Path

from lora_registry.adapter import Adapter
from lora_registry.convert.report import Report
from lora_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from lora_registry.format.files import storage_errors
from loreg_converters._peft.files import CONFIG, PICKLED, WEIGHTS

_CONFIG_BYTES = 8 << 20  # no config is longer; that it says peft_type may come after a long list


class PeftConverter:
    """Folders that ``PeftModel.save_pretrained`` writes and ``PeftModel.from_pretrained`` reads (PEFT 0.21.2)."""

    name = "peft"

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is a PEFT folder, one of its two files, or a folder of named PEFT adapters.

        MLX has a file of the same name; only PEFT's says ``peft_type``.
        """
        return bool(_folders(path))

    def read(self, path: Path) -> tuple[Adapter, Report]:
        """Read an adapter; tensors of a safetensors file stay windows of it, except the B of experts.

        Raises:
            NotFoundError: nothing is there, or the tensors are missing.
            InvalidInputError: the files break PEFT's format or contradict each other; carries every finding.
            UnsupportedError: they say what an adapter cannot hold, or leave open what must be known.
        """
        from loreg_converters._peft.read import read_folder

        folders = _folders(path)
        if not folders:
            if not path.exists():
                raise NotFoundError(f"no such file or folder: {path}")
            raise InvalidInputError(f"{path}: no {CONFIG} with a peft_type")
        if len(folders) > 1:
            names = ", ".join(folder.name for folder in folders)
            raise UnsupportedError(f"{path} holds several adapters: {names}; convert one of these folders")
        with storage_errors(folders[0]):
            adapter, report = read_folder(folders[0])
        if folders[0] not in (path, path.parent):
            report.kept(folders[0].name, "the one named adapter in the folder")
        return adapter, report

    def write(self, adapter: Adapter, path: Path) -> Report:
        """Write a folder that PEFT 0.19.1 or later loads to the same change.

        Raises:
            ConflictError: ``path`` exists.
            UnsupportedError: PEFT cannot say what the adapter says; names the target and the reason.
        """
        from loreg_converters._peft.write import write_folder

        return write_folder(adapter, path)


def _folders(path: Path) -> list[Path]:
    """The folders with an adapter that ``path`` stands for; PEFT puts named adapters into sub-folders."""
    try:
        if path.is_file():
            return [path.parent] if path.name in (CONFIG, WEIGHTS, PICKLED) and _is_peft(path.parent) else []
        if not path.is_dir():
            return []
        if (path / CONFIG).is_file():
            return [path] if _is_peft(path) else []
        return sorted(folder for folder in path.iterdir() if folder.is_dir() and _is_peft(folder))
    except OSError:
        return []


def _is_peft(folder: Path) -> bool:
    config = folder / CONFIG
    if not config.is_file():
        return False
    with config.open("rb") as stream:
        return b'"peft_type"' in stream.read(_CONFIG_BYTES)


converter = PeftConverter()
"""What the entry point ``peft`` names."""
