"""GGUF files: the container, and its tensors as weights (ggml ``docs/gguf.md``, versions 2 and 3).

A file has a magic number, a version, two counts, key-value pairs, a record for each tensor, padding, and the data.
Integers are little-endian; the axis that varies quickest comes first in a record, and last here.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from struct import Struct
from struct import error as StructError  # noqa: N812 - a class, whatever its name

import ml_dtypes
import numpy as np

from lora_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from lora_registry.format.files import from_os_error
from lora_registry.ops.arrays import Array
from lora_registry.quantized import gguf_blocks as small
from lora_registry.quantized import gguf_k_blocks as large

Value = int | float | bool | str
MAGIC = b"GGUF"
_MOST = 1 << 20  # key-value pairs, tensors
_STRING, _ARRAY = 8, 9
_SCALARS = {
    kind: Struct("<" + code)
    for kind, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}


@dataclass(frozen=True, slots=True)
class BlockType:
    """An element type of GGUF.

    Attributes:
        name: ggml's.
        elements: of a block.
        size: of a block, in bytes.
        decode: blocks, uint8 (blocks, size), to float32 (blocks, elements).
        dtype: the same by safetensors' name, where there is one; else F32, what it is dequantized to.
    """

    name: str
    elements: int
    size: int
    decode: Callable[[Array], Array]
    dtype: str = "F32"


def _plain(dtype: object) -> Callable[[Array], Array]:
    kind: np.dtype[np.generic] = np.dtype(dtype)  # type: ignore[call-overload]

    def decode(blocks: Array) -> Array:
        return np.ascontiguousarray(blocks).view(kind).astype(np.float32)

    return decode


TYPES = {
    0: BlockType("F32", 1, 4, _plain("<f4")),
    1: BlockType("F16", 1, 2, _plain("<f2"), "F16"),
    2: BlockType("Q4_0", 32, 18, small.q4_0),
    3: BlockType("Q4_1", 32, 20, small.q4_1),
    6: BlockType("Q5_0", 32, 22, small.q5_0),
    7: BlockType("Q5_1", 32, 24, small.q5_1),
    8: BlockType("Q8_0", 32, 34, small.q8_0),
    10: BlockType("Q2_K", 256, 84, large.q2_k),
    11: BlockType("Q3_K", 256, 110, large.q3_k),
    12: BlockType("Q4_K", 256, 144, large.q4_k),
    13: BlockType("Q5_K", 256, 176, large.q5_k),
    14: BlockType("Q6_K", 256, 210, large.q6_k),
    30: BlockType("BF16", 1, 2, _plain(ml_dtypes.bfloat16), "BF16"),
}
"""The element types that are read, by ggml's number."""


@dataclass(frozen=True, slots=True, eq=False)
class GgufWeight:
    """One tensor of a GGUF file.

    Attributes:
        shape: axis lengths, the one that varies quickest last.
        type: of its elements.
        name: its name in the file.
        blocks: uint8, (rows, bytes of a row).
        order: where each row lies in the file; None where they lie in order.
    """

    shape: tuple[int, ...]
    type: BlockType
    name: str
    blocks: Array
    order: Array | None = None

    @property
    def dtype(self) -> str:
        """F16 and BF16 as they are; what is quantized is dequantized to F32."""
        return self.type.dtype

    @property
    def is_quantized(self) -> bool:
        """Whether its elements are integers with scales."""
        return self.type.elements > 1

    @property
    def parts(self) -> tuple[str, ...]:
        """The one tensor that it is."""
        return (self.name,)

    def rows(self, first: int, last: int) -> Array:
        """Rows as the file has them, or as ``order`` says."""
        rows = self.blocks[first:last] if self.order is None else self.blocks[self.order[first:last]]
        with np.errstate(invalid="ignore", over="ignore"):  # a scale may be infinite: the merge looks at what it gets
            return self.type.decode(rows.reshape(-1, self.type.size)).reshape(last - first, -1)


@dataclass(frozen=True, slots=True)
class GgufFile:
    """An open GGUF file.

    Attributes:
        path: where.
        values: the key-value pairs that are no arrays.
        weights: its tensors by name, in the order of their records.
        places: name to the offsets in the file of its first byte and of the one past its last.
    """

    path: Path
    values: Mapping[str, Value]
    weights: Mapping[str, GgufWeight]
    places: Mapping[str, tuple[int, int]]


def open_gguf(path: Path) -> GgufFile:
    """Open a file and check every record against its size; the data is mapped and not read.

    Raises:
        NotFoundError: there is no such file.
        InvalidInputError: it is no GGUF file, or it is truncated.
        UnsupportedError: another version, a big-endian file, a part of a split model, or an element type that loreg
            does not read.
    """
    try:
        with path.open("rb") as stream:
            data = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise NotFoundError(f"no such file: {path}") from None
    except ValueError:
        raise InvalidInputError(f"{path}: an empty file") from None
    except OSError as error:
        raise from_os_error(error, path) from error
    try:
        return _parse(path, data)
    except (StructError, UnicodeDecodeError):
        raise InvalidInputError(f"{path}: truncated, or no GGUF file") from None


class _Cursor:
    """Reads one value after the other."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self.position = 0

    def scalar(self, kind: int) -> int | float | bool:
        layout = _SCALARS[kind]
        (value,) = layout.unpack_from(self._data, self.position)
        self.position += layout.size
        return value  # type: ignore[no-any-return]

    def integer(self, kind: int = 4) -> int:
        return int(self.scalar(kind))

    def string_bytes(self) -> memoryview:
        length = self.integer(10)
        if length > len(self._data) - self.position:
            raise StructError("a string that is longer than the file")
        self.position += length
        return self._data[self.position - length : self.position]

    def string(self) -> str:
        return str(self.string_bytes(), "utf-8")

    def value(self) -> Value | None:
        """A value after its type; None for an array, which is passed over."""
        kind = self.integer()
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            self._skip_array()
            return None
        if kind not in _SCALARS:
            raise StructError(f"no type {kind}")
        return self.scalar(kind)

    def _skip_array(self) -> None:
        kind, count = self.integer(), self.integer(10)
        if kind in _SCALARS:
            self.position += _SCALARS[kind].size * count
        elif kind == _STRING:
            for _ in range(count):
                self.string_bytes()
        else:
            raise StructError(f"an array of the type {kind}")


def _parse(path: Path, data: memoryview) -> GgufFile:
    if data[:4] != MAGIC:
        raise InvalidInputError(f"{path}: does not begin with 'GGUF'")
    cursor = _Cursor(data)
    cursor.position = 4
    version = cursor.integer()
    if version not in (2, 3):
        raise UnsupportedError(f"{path}: GGUF version {version}; loreg reads 2 and 3, little-endian")
    tensors, pairs = cursor.integer(10), cursor.integer(10)
    if max(tensors, pairs) > _MOST:
        raise InvalidInputError(f"{path}: {tensors} tensors and {pairs} values, at most {_MOST}")
    values: dict[str, Value] = {}
    for _ in range(pairs):
        key = cursor.string()
        value = cursor.value()
        if value is not None:
            values[key] = value
    if int(values.get("split.count", 1)) > 1:
        raise UnsupportedError(
            f"{path}: one of {values['split.count']} parts of a model; join them with llama-gguf-split"
        )
    records = list(_records(path, cursor, tensors))
    alignment = int(values.get("general.alignment", 32))
    if alignment <= 0:
        raise InvalidInputError(f"{path}: an alignment of {alignment}")
    start = -(-cursor.position // alignment) * alignment
    weights: dict[str, GgufWeight] = {}
    places: dict[str, tuple[int, int]] = {}
    for name, shape, kind, offset in records:
        if name in weights:
            raise InvalidInputError(f"{path}: two tensors are called {name!r}")
        weights[name] = _weight(path, name, shape, kind, data[start + offset :])
        places[name] = (start + offset, start + offset + weights[name].blocks.size)
    return GgufFile(path, values, weights, places)


def _records(path: Path, cursor: _Cursor, count: int) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    for _ in range(count):
        name = cursor.string()
        axes = cursor.integer()
        if not 1 <= axes <= 4:
            raise InvalidInputError(f"{path}: {name!r} has {axes} axes")
        shape = tuple(cursor.integer(10) for _ in range(axes))[::-1]
        yield name, shape, cursor.integer(), cursor.integer(10)


def _weight(path: Path, name: str, shape: tuple[int, ...], kind: int, data: memoryview) -> GgufWeight:
    type_ = TYPES.get(kind)
    if type_ is None:
        raise UnsupportedError(f"{path}: {name} has ggml's element type {kind}, which loreg does not read")
    if shape[-1] % type_.elements or not all(shape):
        raise InvalidInputError(f"{path}: {name} of shape {list(shape)} is not made of whole blocks of {type_.name}")
    rows, width = prod(shape[:-1]), shape[-1] // type_.elements * type_.size
    if rows * width > len(data):
        raise InvalidInputError(f"{path}: truncated: {name} needs {rows * width} bytes, {len(data)} are left")
    return GgufWeight(shape, type_, name, np.frombuffer(data[: rows * width], np.uint8).reshape(rows, width))
