"""External data: the files beside an ``.onnx`` that hold its large tensors.

What a location may be is stated by onnx's external-data documentation: a path relative to the folder of the
model. A model from a stranger may say anything, so nothing outside that folder is ever opened.
"""

from __future__ import annotations

import mmap
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import onnx_ir as ir

from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array


def byte_range(tensor: ir.ExternalTensor) -> tuple[int, int]:
    """First byte of ``tensor`` in its file, and the byte after its last."""
    begin = tensor.offset or 0
    return begin, begin + tensor.nbytes


class DataFiles:
    """The data files of one model: found, checked, and mapped once each, when first looked at."""

    def __init__(self, model: Path) -> None:
        self._model = model
        self._folder = model.resolve().parent
        self._paths: dict[str, Path] = {}
        self._maps: dict[Path, mmap.mmap] = {}

    def check(self, tensor: ir.ExternalTensor) -> None:
        """Raise InvalidInputError unless ``tensor`` lies wholly in a regular file inside the model's folder."""
        where = f"{self._model}: the external data of {tensor.name!r}"
        path = self.path(tensor)
        begin, end = byte_range(tensor)
        size = path.stat().st_size
        if begin < 0 or end > size:
            raise InvalidInputError(f"{where} needs bytes {begin} to {end} of {path.name}, which has {size}")
        if tensor.length is not None and tensor.length != tensor.nbytes:
            raise InvalidInputError(f"{where} is {tensor.length} bytes long; its shape and type need {tensor.nbytes}")

    def path(self, tensor: ir.ExternalTensor) -> Path:
        """The data file of ``tensor``."""
        location = str(tensor.location)
        if location not in self._paths:
            self._paths[location] = self._find(location, str(tensor.name))
        return self._paths[location]

    def _find(self, location: str, name: str) -> Path:
        where = f"{self._model}: the external data of {name!r}"
        posix, windows = PurePosixPath(location), PureWindowsPath(location)
        if posix.is_absolute() or windows.anchor or ".." in posix.parts or ".." in windows.parts or "\0" in location:
            raise InvalidInputError(f"{where} lies at {location!r}, which leaves the folder of the model")
        path = self._folder / posix
        try:
            mode = path.stat().st_mode
        except OSError:
            raise InvalidInputError(f"{where} is missing: no file {location!r} beside the model") from None
        if not stat.S_ISREG(mode):
            raise InvalidInputError(f"{where} lies at {location!r}, which is not a file")
        if not path.resolve().is_relative_to(self._folder):
            raise InvalidInputError(f"{where} lies at {location!r}, a link that leaves the folder of the model")
        return path

    def array(self, tensor: ir.ExternalTensor) -> Array:
        """The elements of ``tensor``, a read-only window of the mapped file."""
        if tensor.dtype.bitwidth % 8:
            raise UnsupportedError(f"{self._model}: {tensor.name!r} has the packed type {tensor.dtype.name}")
        array: Array = self.bytes(tensor).view(tensor.dtype.numpy()).reshape(tensor.shape.numpy())
        return array

    def bytes(self, tensor: ir.ExternalTensor) -> Array:
        """The bytes of ``tensor``, of a packed type too: U8 (bytes,), a read-only window of the mapped file."""
        begin, end = byte_range(tensor)
        if begin == end:
            return np.zeros(0, np.uint8)
        return np.frombuffer(self._map(self.path(tensor)), np.uint8, end - begin, begin)

    def _map(self, path: Path) -> mmap.mmap:
        if path not in self._maps:
            with path.open("rb") as stream:
                self._maps[path] = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[path]
