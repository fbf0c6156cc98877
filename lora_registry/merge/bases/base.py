"""Base models, opened lazily: headers are read and checked, tensors are windows of memory-mapped files."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path

from lora_registry.adapter import Json, Tensor
from lora_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from lora_registry.format.canonical import JsonError, decode
from lora_registry.format.container import Container, Entry, open_container
from lora_registry.merge.bases.pickled import open_pickled, safe_name
from lora_registry.merge.bases.ties import find_ties
from lora_registry.ops.arrays import Array, to_array
from lora_registry.quantized.weight import QuantizedWeight, Scheme

STEMS = ("model", "diffusion_pytorch_model")
"""What transformers and diffusers call their weights, without the suffix."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of weights that are programs: loading them can run anything, so their tensors are found without."""

_PICKLED_WEIGHTS = "pytorch_model.bin"
"""What transformers called its weights before safetensors."""


class Checkpoint:
    """A safetensors checkpoint: a Hugging Face folder, sharded or not, or one file.

    Attributes:
        path: the folder, or the file.
        index: the file of ``weight_map`` where the checkpoint is sharded.
        shards: file name to its open container, in the order of the names.
        places: tensor name to the name of the file that holds it.
        config: ``config.json`` of the folder; empty where there is none.
    """

    kind = "safetensors"

    def __init__(self, path: Path, shards: Mapping[str, Container], index: Path | None, config: dict[str, Json]):
        self.path = path
        self.index = index
        self.shards = shards
        self.config = config
        self.places: dict[str, str] = {}
        for file, container in shards.items():
            for name in container.entries:
                if name in self.places:
                    raise InvalidInputError(f"{path}: {name!r} is both in {self.places[name]} and in {file}")
                self.places[name] = file

    @property
    def is_folder(self) -> bool:
        """Whether the checkpoint is a folder and not one file."""
        return self.path.is_dir()

    @cached_property
    def ties(self) -> Mapping[str, str]:
        """Tensors that share the values of another; see :mod:`lora_registry.merge.bases.ties`."""
        return find_ties(self, self.config)

    def names(self) -> Iterable[str]:
        """Names of the tensors that are stored."""
        return self.places

    def entry(self, name: str) -> Entry:
        """Where a tensor lies in its file; KeyError where there is none of that name."""
        return self.shards[self.places[name]].entries[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths as stored."""
        return self.entry(name).shape

    def dtype(self, name: str) -> str:
        """Element type by safetensors' name."""
        return self.entry(name).dtype

    def array(self, name: str) -> Array:
        """The elements, as a window of the memory-mapped file."""
        return to_array(self.tensor(name))

    def head(self, file: str) -> bytes:
        """What comes before the data of a file: the length of the header, and the header."""
        header = self.shards[file].header_bytes
        return len(header).to_bytes(8, "little") + header

    def written_name(self, file: str) -> str:
        """What the file is called that is made of ``file``: no pickle is ever written."""
        return safe_name(file) if self.is_pickled else file

    @property
    def is_pickled(self) -> bool:
        """Whether the weights are pickled: the bytes of each tensor are as in safetensors, what is around them not."""
        return any(file.endswith(PICKLED) for file in self.shards)

    def window(self, name: str) -> tuple[int, int]:
        """Offsets in its file of the first byte of a tensor, and of the one past the last."""
        entry, start = self.entry(name), self.shards[self.places[name]].data_start
        return start + entry.begin, start + entry.end

    def names_in(self, file: str) -> list[str]:
        """Names of the tensors of one file, in the order of their bytes."""
        entries = self.shards[file].entries
        return sorted(entries, key=lambda name: (entries[name].begin, entries[name].end))

    @property
    def written_suffix(self) -> str:
        """How the name of what is made of this checkpoint ends, where it is one file."""
        return ".safetensors"

    def weight(self, name: str) -> QuantizedWeight:
        """The quantized weight ``name``; KeyError where there is none."""
        raise KeyError(name)

    @property
    def scheme(self) -> Scheme | None:
        """How the weights are quantized of which these are the values; None where they are what is stored."""
        return None

    @property
    def written_config(self) -> dict[str, Json]:
        """The configuration of what is made of this checkpoint, but for what the making changes."""
        return self.config

    @property
    def vocabulary(self) -> tuple[int, int] | None:
        """Rows of the stored tables of tokens, and of those that are seen here; None where they are the same."""
        return None

    def is_computed(self, name: str) -> bool:
        """Whether the elements are computed from what is stored, so that no bytes of a file are theirs."""
        del name
        return False

    def written_dtype(self, name: str) -> str:
        """Element type in a merge that is not told another."""
        return self.dtype(name)

    def elements(self, name: str, start: int, stop: int) -> Array:
        """The elements from number ``start`` to before ``stop``, flat."""
        return self.array(name).reshape(-1)[start:stop]

    def tensor(self, name: str) -> Tensor:
        """The same without numpy; KeyError where there is none of that name."""
        return self.shards[self.places[name]].tensor(name)


def open_base(path: str | Path) -> Checkpoint:
    """Open a safetensors base model and check every header against its file.

    Args:
        path: a Hugging Face folder (``model.safetensors``, or shards with ``model.safetensors.index.json``;
            diffusers' names too; ``pytorch_model.bin``, sharded or not, where there is none of these), or one such
            file. ONNX models have their own reader,
            :class:`lora_registry.onnx.model.OnnxModel`, because their tensors are found by other means.

    Raises:
        NotFoundError: there is nothing at ``path``.
        InvalidInputError: a shard is missing or truncated, the index and the shards disagree, a name occurs
            twice, or there are no weights.
        UnsupportedError: the weights are pickled, or in another format.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path)
    if not path.exists():
        raise NotFoundError(f"no such file or folder: {path}")
    if path.name.endswith(".safetensors.index.json"):
        return _open_folder(path.parent)
    if path.suffix in PICKLED:
        return Checkpoint(path, {path.name: open_pickled(path)}, None, {})
    if path.suffix != ".safetensors":
        raise UnsupportedError(f"{path}: not a safetensors file, and not a folder of them")
    return Checkpoint(path, {path.name: open_container(path)}, None, {})


def _open_folder(folder: Path) -> Checkpoint:
    single = [folder / f"{stem}.safetensors" for stem in STEMS if (folder / f"{stem}.safetensors").is_file()]
    index = [path for stem in STEMS if (path := folder / f"{stem}.safetensors.index.json").is_file()]
    if len(single) + len(index) > 1:
        found = " and ".join(path.name for path in single + index)
        raise InvalidInputError(f"{folder}: {found} are both there; which one is the model?")
    if single:
        return Checkpoint(folder, {single[0].name: open_container(single[0])}, None, read_config(folder))
    if index:
        return _open_sharded(folder, index[0])
    if (folder / _PICKLED_WEIGHTS).is_file():
        shards = {_PICKLED_WEIGHTS: open_pickled(folder / _PICKLED_WEIGHTS)}
        return Checkpoint(folder, shards, None, read_config(folder))
    if (folder / f"{_PICKLED_WEIGHTS}.index.json").is_file():
        return _open_sharded(folder, folder / f"{_PICKLED_WEIGHTS}.index.json")
    raise _no_weights(folder)


def _no_weights(folder: Path) -> InvalidInputError:
    names = sorted(path.name for path in folder.iterdir())
    if "adapter_config.json" in names:
        return InvalidInputError(f"{folder}: an adapter, not a base model")
    pickled = [name for name in names if name.endswith(PICKLED)]
    if pickled:
        return UnsupportedError(
            f"{folder}: only pickled weights that are not called {_PICKLED_WEIGHTS} ({pickled[0]}); name the file, or "
            "save the model with save_pretrained() of transformers first"
        )
    wanted = " or ".join(f"{stem}.safetensors[.index.json]" for stem in STEMS)
    return InvalidInputError(f"{folder}: no {wanted} in this folder")


def _open_sharded(folder: Path, index: Path) -> Checkpoint:
    weight_map = read_weight_map(index)
    shards: dict[str, Container] = {}
    for file in sorted(set(weight_map.values())):
        if Path(file).name != file:
            raise InvalidInputError(f"{index}: {file!r} is not the name of a file in this folder")
        if not (folder / file).is_file():
            count = sum(1 for place in weight_map.values() if place == file)
            raise InvalidInputError(f"{folder}: shard {file} is missing; {index.name} places {count} tensors in it")
        opened = open_pickled if file.endswith(PICKLED) else open_container
        shards[file] = opened(folder / file)
    checkpoint = Checkpoint(folder, shards, index, read_config(folder))
    for name, file in weight_map.items():
        if checkpoint.places.get(name) != file:
            raise InvalidInputError(f"{index}: {name!r} is not in {file}")
    return checkpoint


def read_weight_map(index: Path) -> dict[str, str]:
    """The ``weight_map`` of an index file: tensor name to file name.

    Raises:
        InvalidInputError: the file is no index.
    """
    try:
        document = decode(index.read_bytes())
    except JsonError as error:
        raise InvalidInputError(f"{index}: {error}") from None
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise InvalidInputError(f"{index}: no weight_map from tensor names to file names")
    return {name: str(file) for name, file in weight_map.items()}


def read_config(folder: Path) -> dict[str, Json]:
    """``config.json`` of ``folder``; empty where there is none.

    Raises:
        InvalidInputError: it is there, and is no JSON object.
    """
    path = folder / "config.json"
    if not path.is_file():
        return {}
    try:
        # Not the strict reader: transformers itself writes Infinity into some configurations.
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInputError(f"{path}: not JSON: {error}") from None
    if not isinstance(config, dict):
        raise InvalidInputError(f"{path}: not a JSON object")
    return config
