"""Quantized base models, opened as the values that they stand for."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from math import prod
from pathlib import Path

from lora_registry.adapter import Adapter, Json
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError
from lora_registry.format.container import Container
from lora_registry.merge.bases.base import Checkpoint, open_base
from lora_registry.ops.arrays import Array
from lora_registry.quantized.gguf_file import GgufFile, open_gguf
from lora_registry.quantized.gguf_names import quantization
from lora_registry.quantized.recognition import recognize, without_quantization
from lora_registry.quantized.view import Dequantized
from lora_registry.quantized.weight import QuantizedWeight, Scheme, Tensors


class QuantizedCheckpoint(Checkpoint):
    """A checkpoint whose quantized weights have the names, shapes and values that they have unquantized.

    Args:
        path: the folder, or the file.
        shards: its files.
        index: the file of ``weight_map`` where it is sharded.
        config: ``config.json``.
        view: the tensors.
        places: name of each stored tensor to that of its file.
    """

    def __init__(
        self,
        path: Path,
        shards: Mapping[str, Container],
        index: Path | None,
        config: dict[str, Json],
        view: Dequantized,
        places: Mapping[str, str],
    ) -> None:
        super().__init__(path, shards, index, config)
        self._view = view
        self.places = {name: places[view.place(name)] for name in view.names()}

    @property
    def scheme(self) -> Scheme:
        """How the weights are quantized."""
        return self._view.scheme

    @property
    def written_config(self) -> dict[str, Json]:
        """The configuration without the quantization."""
        return without_quantization(self.config)

    def is_computed(self, name: str) -> bool:
        """Whether ``name`` is a quantized weight."""
        return name in self._view.weights

    def weight(self, name: str) -> QuantizedWeight:
        """The quantized weight ``name``; KeyError where there is none."""
        return self._view.weights[name]

    def names_in(self, file: str) -> list[str]:
        """Names of the tensors of one file; a weight where the first of its parts lies."""
        return sorted(
            (name for name, place in self.places.items() if place == file),
            key=lambda name: self._position(file, self._view.place(name)),
        )

    def _position(self, file: str, stored: str) -> int:
        entry = self.shards[file].entries.get(stored)
        return 0 if entry is None else entry.begin  # GGUF: the records are in order

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths, unquantized."""
        return self._view.shape(name)

    def dtype(self, name: str) -> str:
        """Element type, unquantized."""
        return self._view.dtype(name)

    def written_dtype(self, name: str) -> str:
        """Element type in a merge that is not told another."""
        return self._view.written_dtype(name)

    def window(self, name: str) -> tuple[int, int]:
        """Of a computed tensor, the offsets that it would have in a file of its own."""
        if not self.is_computed(name):
            return super().window(name)
        return 0, prod(self.shape(name)) * DTYPES[self.dtype(name)].size

    def elements(self, name: str, start: int, stop: int) -> Array:
        """Elements, computed or as stored."""
        return self._view.elements(name, start, stop) if self.is_computed(name) else super().elements(name, start, stop)

    def array(self, name: str) -> Array:
        """All elements, computed or as stored."""
        return self._view.array(name)


def open_view(path: str | Path, adapter: Adapter | None) -> Checkpoint:
    """Open a base model; a quantized one, or a GGUF file, as the values that it stands for.

    Args:
        path: as for :func:`~lora_registry.merge.bases.base.open_base`, or a ``.gguf`` file.
        adapter: its names tell whether a GGUF file is asked for by its own names or by those of transformers; without
            one, it is by the latter where they are known.

    Raises:
        NotFoundError: there is nothing at ``path``.
        InvalidInputError: it is broken.
        UnsupportedError: pickled, or quantized by a known scheme in a form that is not read.
    """
    path = Path(path)
    if path.suffix == ".gguf" and not path.is_dir():
        return _open_gguf(path, adapter)
    stored = open_base(path)
    try:
        found = recognize(stored, stored.config)
        if found is None:
            return stored
        view = Dequantized(stored, found)
    except InvalidInputError as error:
        raise type(error)(f"{path}: {error}") from None
    return QuantizedCheckpoint(stored.path, stored.shards, stored.index, stored.config, view, stored.places)


def _open_gguf(path: Path, adapter: Adapter | None) -> Checkpoint:
    file = open_gguf(path)
    found = quantization(file, frozenset(target.name for target in adapter or ()))
    with path.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    container = Container(path, b"", {}, {}, data)  # of safetensors' tensors, it has none
    view = Dequantized(_Records(file), found)
    return QuantizedCheckpoint(path, {path.name: container}, None, {}, view, dict.fromkeys(file.weights, path.name))


class _Records(Tensors):
    """The tensors of a GGUF file by name; every one of them is a weight, so that nobody asks for more."""

    def __init__(self, file: GgufFile) -> None:
        self._weights = file.weights

    def names(self) -> list[str]:
        return list(self._weights)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights[name].shape

    def dtype(self, name: str) -> str:
        return self._weights[name].dtype

    def array(self, name: str) -> Array:
        return self._weights[name].blocks
