"""Weights that torch pickled, opened as if they were a safetensors file; nothing in them is run."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from lora_registry.convert.pickled import find_pickled
from lora_registry.errors import UnsupportedError
from lora_registry.format.container import Container, Entry

_LENGTH = 8  # bytes of the length that a container counts from, and a pickled file does not have


def open_pickled(path: Path) -> Container:
    """The tensors of a state dict as a container without a header, in the order of their bytes.

    Raises:
        InvalidInputError: no state dict, or a damaged one; nothing of it has been run.
        UnsupportedError: a torch file from before 1.6; or a tensor whose elements are not in row-major order.
    """
    entries = {}
    for name, stored in find_pickled(path).items():
        if stored.begin is None:
            raise UnsupportedError(
                f"{path}: {name} is a view whose elements are not in row-major order; save the model with "
                "save_pretrained() of transformers first"
            )
        begin = stored.begin - _LENGTH
        entries[name] = Entry(stored.tensor.dtype, stored.tensor.shape, begin, begin + stored.tensor.nbytes)
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    with path.open("rb") as stream:
        file = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return Container(path, b"", {"format": "pt"}, ordered, file)


def safe_name(file: str) -> str:
    """The name of the safetensors file that takes the place of a pickled one, as transformers would call it."""
    stem = re.sub(r"^pytorch_model", "model", file.rpartition(".")[0])
    return f"{stem}.safetensors"
