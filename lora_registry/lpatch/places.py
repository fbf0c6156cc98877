"""Where the tensors of an ONNX model lie in its files, those inside of the ``.onnx`` too."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from lora_registry.dtypes import DTYPES
from lora_registry.errors import NotAllowedError
from lora_registry.onnx.external import byte_range
from lora_registry.onnx.model import OnnxModel, dtype_of, shape_of

_SMALL = 64
"""Bytes of a tensor inside of the ``.onnx`` that is not looked for: it is stored with what is around it."""


@dataclass(frozen=True, slots=True)
class Place:
    """The bytes of one initializer.

    Attributes:
        file: name of the file.
        offset: where they begin.
        length: how many there are.
        dtype: element type, as safetensors has it, or ONNX's name where it has none.
        shape: axis lengths.
    """

    file: str
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def end(self) -> int:
        """The byte after the last."""
        return self.offset + self.length

    @property
    def word(self) -> int:
        """Bytes of an element; 1 where elements are no whole bytes."""
        return DTYPES[self.dtype].size if self.dtype in DTYPES else 1


class ModelFiles:
    """The files of an ONNX model by name, and the places of its initializers.

    Attributes:
        model: name of the ``.onnx``.
        paths: name to path, the ``.onnx`` first. Names are relative to the folder of the model, with ``/``.
        places: initializer to its place; those that share bytes with others, too.

    Raises:
        NotFoundError, InvalidInputError: as :meth:`~lora_registry.onnx.model.OnnxModel.open`.
    """

    def __init__(self, opened: OnnxModel) -> None:
        folder = opened.path.resolve().parent
        self.model = opened.path.name
        self.paths: dict[str, Path] = {self.model: opened.path}
        for path in opened.files()[1:]:
            name = path.relative_to(folder).as_posix()
            if name in self.paths:
                raise NotAllowedError(f"{opened.path}: the model is its own data file")
            self.paths[name] = path
        names = {path: name for name, path in self.paths.items()}
        self.places: dict[str, Place] = dict(self._external(opened, names))
        self.places.update(self._inside(opened))

    @staticmethod
    def _external(opened: OnnxModel, names: dict[Path, str]) -> Iterator[tuple[str, Place]]:
        for name, value in opened.initializers.items():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes:
                begin, end = byte_range(tensor)
                file = names[opened.data.path(tensor)]
                yield name, Place(file, begin, end - begin, dtype_of(value), shape_of(value))

    def _inside(self, opened: OnnxModel) -> Iterator[tuple[str, Place]]:
        """Tensors that the protobuf holds, found by their bytes; it keeps them in order, so that this is one pass."""
        with opened.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as text:
            position = 0
            for name, value in opened.initializers.items():
                tensor = value.const_value
                if tensor is None or isinstance(tensor, ir.ExternalTensor) or not _is_plain(value):
                    continue
                data = np.ascontiguousarray(opened.elements(value)).reshape(-1).view(np.uint8).tobytes()
                if len(data) < _SMALL:
                    continue
                found = text.find(data, position)
                if found < 0:
                    found = text.find(data)
                if found >= 0:
                    position = found + len(data)
                    yield name, Place(self.model, found, len(data), dtype_of(value), shape_of(value))


def _is_plain(value: ir.Value) -> bool:
    """Whether an array of the elements has the bytes of the file."""
    return dtype_of(value) in DTYPES
