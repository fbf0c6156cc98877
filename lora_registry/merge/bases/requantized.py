"""A quantized checkpoint as it is stored, for a merge whose output is quantized in the same way."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path

from lora_registry.adapter import Adapter
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.container import Container, Entry
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.quantized import QuantizedCheckpoint, open_view
from lora_registry.quantized.gguf_file import GgufFile, open_gguf
from lora_registry.quantized.weight import QuantizedWeight, Scheme


class StoredCheckpoint(Checkpoint):
    """The stored tensors of a quantized checkpoint under their own names, and what they stand for beside them.

    Args:
        view: the same checkpoint as the values that it stands for.
    """

    def __init__(self, view: QuantizedCheckpoint) -> None:
        super().__init__(view.path, view.shards, view.index, view.config)
        self.view = view

    @property
    def ties(self) -> Mapping[str, str]:
        """Those of the values."""
        return self.view.ties

    @property
    def scheme(self) -> Scheme:
        """How the weights are quantized."""
        return self.view.scheme

    def weight(self, name: str) -> QuantizedWeight:
        """The quantized weight ``name``; KeyError where there is none."""
        return self.view.weight(name)


class StoredGguf(StoredCheckpoint):
    """A GGUF file whose tensors are runs of bytes, each with the padding behind it.

    Args:
        view: the same file as the values that it stands for.
        file: its records.
    """

    kind = "gguf"

    def __init__(self, view: QuantizedCheckpoint, file: GgufFile) -> None:
        path = view.path
        with path.open("rb") as stream:
            data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        order = sorted(file.places, key=lambda name: file.places[name])
        begins = [file.places[name][0] for name in order]
        self._head = data[: begins[0]] if begins else data[:]
        entries = {}
        for name, begin, following in zip(order, begins, [*begins[1:], len(data)], strict=True):
            if following < file.places[name][1]:
                raise InvalidInputError(f"{path}: {name} lies over the tensor that follows it")
            size = following - begin
            entries[name] = Entry("U8", (size,), begin - begins[0], begin - begins[0] + size)
        container = Container(path, self._head[8:], {}, entries, data)
        super().__init__(view)
        self.shards = {path.name: container}
        self.places = dict.fromkeys(order, path.name)

    @property
    def written_suffix(self) -> str:
        """A GGUF file."""
        return ".gguf"

    def head(self, file: str) -> bytes:
        """Everything before the first tensor."""
        del file
        return self._head


def open_stored(path: str | Path, adapter: Adapter | None) -> StoredCheckpoint:
    """Open a quantized checkpoint, or a GGUF file, for a merge that quantizes it again.

    Args:
        path: as for :func:`~lora_registry.merge.bases.quantized.open_view`.
        adapter: likewise.

    Raises:
        NotFoundError: there is nothing at ``path``.
        InvalidInputError: it is broken.
        UnsupportedError: it is not quantized, or in a form that is not read.
    """
    view = open_view(path, adapter)
    if not isinstance(view, QuantizedCheckpoint):
        raise UnsupportedError(f"{view.path} is not quantized, so that nothing in it can be quantized again")
    if view.path.suffix == ".gguf" and not view.is_folder:
        return StoredGguf(view, open_gguf(view.path))
    return StoredCheckpoint(view)
