"""``.onnx_adapter``: named tensors that ONNX Runtime feeds to the inputs of a graph.

The schema is ``onnxruntime/lora/adapter_format/adapter_schema.fbs`` (microsoft/onnxruntime, since 1.20)::

    table Parameter { name: string; dims: [int64]; data_type: TensorDataType; raw_data: [uint8] (force_align: 8); }
    table Adapter   { format_version: int; adapter_version: int; model_version: int; parameters: [Parameter]; }

with the file identifier TORT. Written and read without onnxruntime.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from lora_registry.adapter import Json, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import BY_ONNX, DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format import canonical
from lora_registry.format.files import atomic_write, storage_errors
from lora_registry.onnx.slots.flatbuffer import BrokenBufferError, Table, number, padding, table
from lora_registry.onnx.slots.manifest import number_of

SUFFIX = ".onnx_adapter"
IDENTIFIER = b"TORT"
FORMAT_VERSION = 1

_LARGEST = (1 << 31) - 1  # bytes; offsets of FlatBuffers are 32 bits, and its verifier takes one less
_ADAPTER = (4, 8, 12, 16)  # where the four fields lie in the table, behind its offset to the vtable
_ADAPTER_SIZE = 20
_PARAMETER = (4, 8, 12, 16)
_PARAMETER_SIZE = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """The content of a file.

    Attributes:
        parameters: name to tensor; windows of the file where it was read.
        model_version: of the graph that it is for (W-005); 0 where the writer says nothing.
        adapter_version: of the parameters themselves (W-006); 0 where the writer says nothing.
    """

    parameters: Mapping[str, Tensor]
    model_version: int = 0
    adapter_version: int = 0

    @property
    def checksum(self) -> int:
        """31 bits of the digest of the parameters: what loreg states as ``adapter_version`` (W-006)."""
        said: dict[str, Json] = {
            name: [tensor.dtype, list[Json](tensor.shape)] for name, tensor in self.parameters.items()
        }
        chunks = (self.parameters[name].data for name in sorted(self.parameters))
        return number_of(Digest.of_chunks((canonical.encode(said), *chunks)))

    def write(self, path: Path) -> None:
        """Write a new file, whole or not at all.

        Raises:
            ConflictError: ``path`` exists.
            UnsupportedError: more than 2 GiB, which the format cannot hold.
        """
        size = sum(tensor.nbytes + len(name) + 128 for name, tensor in self.parameters.items())
        if size > _LARGEST:
            raise UnsupportedError(f"{path}: {size >> 20} MiB; an {SUFFIX} file holds less than 2 GiB")
        with storage_errors(path), atomic_write(path) as stream:
            self._write(stream)

    def _write(self, stream: IO[bytes]) -> None:
        """Header, the table, the vector of parameters, and then each: its table, name, dims and data, in that order."""
        root = 8 + 4 + 2 * len(_ADAPTER)
        vector = root + _ADAPTER_SIZE
        head = struct.pack("<I4s", root, IDENTIFIER) + table(_ADAPTER, _ADAPTER_SIZE)
        head += struct.pack("<iiii", 4 + 2 * len(_ADAPTER), FORMAT_VERSION, self.adapter_version, self.model_version)
        head += struct.pack("<II", 4, len(self.parameters))
        first = vector + 4 + 4 * len(self.parameters)
        first += padding(first, 4)
        places, place = [], first
        for name, tensor in self.parameters.items():
            layout = _Layout.of(place, name, tensor)
            places.append(layout)
            place = layout.end
        entries = [layout.table - (vector + 4 + 4 * index) for index, layout in enumerate(places)]
        head += struct.pack(f"<{len(entries)}I", *entries)
        stream.write(head.ljust(first, b"\0"))
        for layout, (name, tensor) in zip(places, self.parameters.items(), strict=True):
            for chunk in layout.chunks(name, tensor):
                stream.write(chunk)

    @classmethod
    def read(cls, path: Path) -> AdapterFile:
        """Map a file; its tensors are windows of it.

        Raises:
            InvalidInputError: not such a file, or a broken one.
            UnsupportedError: a later version of the format, or elements that safetensors has no type for.
        """
        with storage_errors(path), path.open("rb") as stream:
            if path.stat().st_size < 8:
                raise InvalidInputError(f"{path}: not an {SUFFIX} file")
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        if bytes(data[4:8]) != IDENTIFIER:
            raise InvalidInputError(f"{path}: not an {SUFFIX} file: it does not begin with TORT")
        try:
            root = Table.at(data, number(data, "<I", 0))
            if root.integer(0) != FORMAT_VERSION:
                raise UnsupportedError(f"{path}: format version {root.integer(0)}; this loreg reads {FORMAT_VERSION}")
            parameters = _parameters(path, root)
            return cls(parameters=parameters, adapter_version=root.integer(1), model_version=root.integer(2))
        except (BrokenBufferError, UnicodeDecodeError) as error:
            raise InvalidInputError(f"{path}: broken: {error}") from None


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the parts of one parameter lie in the file."""

    start: int
    table: int
    name: int
    dims: int
    data: int
    end: int

    @classmethod
    def of(cls, start: int, name: str, tensor: Tensor) -> _Layout:
        table = start + 4 + 2 * len(_PARAMETER)
        text = table + _PARAMETER_SIZE
        dims = text + 4 + len(name.encode()) + 1
        dims += padding(dims, 8, 4)
        data = dims + 4 + 8 * len(tensor.shape)
        data += padding(data, 8, 4)
        end = data + 4 + tensor.nbytes
        return cls(start, table, text, dims, data, end + padding(end, 4))

    def chunks(self, name: str, tensor: Tensor) -> Iterator[bytes | memoryview]:
        encoded = name.encode()
        kind = DTYPES[tensor.dtype].onnx
        where = [place - (self.table + field) for place, field in zip((self.name, self.dims), _PARAMETER, strict=False)]
        fields = struct.pack("<iIIiI", self.table - self.start, *where, kind, self.data - (self.table + _PARAMETER[3]))
        yield table(_PARAMETER, _PARAMETER_SIZE) + fields
        text = struct.pack("<I", len(encoded)) + encoded
        yield text.ljust(self.dims - self.name, b"\0")
        dims = struct.pack(f"<I{len(tensor.shape)}q", len(tensor.shape), *tensor.shape)
        yield dims.ljust(self.data - self.dims, b"\0")
        yield struct.pack("<I", tensor.nbytes)
        yield tensor.data
        yield bytes(self.end - self.data - 4 - tensor.nbytes)


def _parameters(path: Path, root: Table) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for parameter in root.tables(3):
        name, shape = bytes(parameter.bytes(0)).decode("utf-8"), parameter.integers(1)
        dtype, data = BY_ONNX.get(parameter.integer(2)), parameter.bytes(3)
        if dtype is None:
            raise UnsupportedError(f"{path}: {name!r} has the ONNX element type {parameter.integer(2)}")
        if name in found:
            raise InvalidInputError(f"{path}: two parameters are called {name!r}")
        if any(length < 0 for length in shape):
            raise InvalidInputError(f"{path}: {name!r} has the shape {list(shape)}")
        try:
            found[name] = Tensor(dtype.name, shape, data)
        except ValueError as error:
            raise InvalidInputError(f"{path}: {name!r}: {error}") from None
    return found
