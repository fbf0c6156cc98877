"""The other files of a model's folder: what goes along with merged weights, and what would now be wrong.

A folder may hold the same weights in other formats, or exports of them. After a merge these are the
weights of another model, so they are left out, and the receipt says so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lora_registry.merge.bases.base import PICKLED, Checkpoint
from lora_registry.merge.receipt import FOLDER_RECEIPT

_WEIGHTS = (*PICKLED, ".safetensors", ".gguf", ".onnx", ".onnx_data", ".onnx.data", ".h5", ".msgpack", ".ot", ".tflite")
_EXPORTS = frozenset({"onnx", "openvino", "coreml", "gguf", "original", "mlx"})
_OF_TRAINING = re.compile(r"checkpoint-\d+|global_step\d+|runs|wandb")
"""Folders that Trainer, DeepSpeed and loggers leave in the folder of a model."""
_OF_ADAPTERS = frozenset({"adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"})
"""transformers would load an adapter that lies beside the merged weights, and apply it a second time."""


@dataclass(frozen=True, slots=True)
class Companions:
    """The files of a folder that are not its weights.

    Attributes:
        copied: paths relative to the folder, ascending.
        left_out: names of files and folders that would be stale, ascending; folders end in ``/``.
    """

    copied: tuple[str, ...]
    left_out: tuple[str, ...]


def find_companions(base: Checkpoint) -> Companions:
    """Sort the other files of a checkpoint's folder into what is copied and what is left out.

    Hidden entries are neither: they belong to tools such as git. Folders go along whole, as the modules of
    a sentence-transformers model do, unless their name says that they hold an export of the same weights, or the
    state of a training run.
    """
    copied: list[str] = []
    left_out: list[str] = []
    own = {*base.shards, FOLDER_RECEIPT, *([base.index.name] if base.index else [])}
    for path in sorted(base.path.iterdir()):
        if path.name.startswith(".") or path.name in own:
            continue
        if path.is_dir():
            if path.name in _EXPORTS or _OF_TRAINING.fullmatch(path.name) or path.is_symlink():
                left_out.append(f"{path.name}/")
            else:
                copied += _inside(path, base.path)
        elif _is_stale(path.name):
            left_out.append(path.name)
        elif path.is_file():
            copied.append(path.name)
        else:
            left_out.append(path.name)  # a broken link, a socket
    return Companions(tuple(sorted(copied)), tuple(left_out))


def _is_stale(name: str) -> bool:
    stem = name.removesuffix(".index.json")
    return name.endswith(_WEIGHTS) or (stem != name and stem.endswith(_WEIGHTS)) or name in _OF_ADAPTERS


def _inside(folder: Path, root: Path) -> list[str]:
    return [
        path.relative_to(root).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(root).parts)
    ]
