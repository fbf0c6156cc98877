"""``adapter_model.bin``: torch's zip files, read without torch and without running anything.

A pickle is a program that may call whatever it can name. The machine that runs it here can name four kinds
of things, and they are ours: an ordered mapping, a tensor that is put together from a window of the file,
the marker of a parameter, and the types of storages. Everything else is refused before it is looked up.
The zip members must be stored uncompressed, as torch writes them, so nothing can be blown up.
"""

from __future__ import annotations

import io
import mmap
import pickle
import pickletools
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lora_registry.adapter import Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.limits import RANK_OF_SHAPE, TENSORS

PICKLE_BYTES = 64 << 20  # a state dict takes about 300 bytes a tensor
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL",
}  # fmt: skip

_DTYPES = {dtype.torch: dtype.name for dtype in DTYPES.values()}
_UNTYPED = "U8"  # storages of newer types are bytes; the tensor over them says what they hold

_OPCODES = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1",
    "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST",
    "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS", "GLOBAL", "STACK_GLOBAL", "REDUCE", "BUILD", "BINPERSID",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET",
})  # fmt: skip
"""What state dicts are made of in protocols 2 to 5. The other opcodes make objects in ways that none needs."""

# What a hostile sequence of opcodes can make the unpickling machine raise.
_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError,
    OverflowError, RecursionError, MemoryError, UnicodeDecodeError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    data: memoryview


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Dtype:
    name: str


@dataclass(frozen=True, slots=True)
class _Call:
    """One of our functions, without attributes that a pickle could set."""

    function: Callable[..., Tensor]

    def __call__(self, *arguments: Any) -> Tensor:
        return self.function(*arguments)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, as windows of the file where they are contiguous.

    Raises:
        UnsupportedError: a torch file from before 1.6, which is no zip file.
        InvalidInputError: anything else that is no plain state dict; nothing of it has been run.
    """
    if not zipfile.is_zipfile(path):
        raise UnsupportedError(
            f"{path}: no zip file; a bare pickle, or torch's format from before 1.6; nothing in it was run"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(path, archive)
            program = _program(path, members)
    except (zipfile.BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path}: a damaged zip file ({error})") from None
    state = _run(path, program, members)
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise InvalidInputError(f"{path}: the pickle is no state dict")
    if len(state) > TENSORS:
        raise InvalidInputError(f"{path}: {len(state)} tensors, at most {TENSORS}")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise InvalidInputError(f"{path}: {key!r} is no tensor")
    return dict(state)


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, memoryview]:
    """Name without the top folder to the member's bytes."""
    with path.open("rb") as stream:
        whole = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    members: dict[str, memoryview] = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise InvalidInputError(f"{path}: the member {info.filename!r} is compressed, which torch does not write")
        fixed = whole[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
        name_length, extra_length = _LOCAL_HEADER.unpack(fixed)[-2:]
        begin = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        name = info.filename.partition("/")[2]
        if begin + info.file_size > len(whole) or name in members:
            raise InvalidInputError(f"{path}: the member {info.filename!r} is truncated, or there twice")
        members[name] = whole[begin : begin + info.file_size]
    return members


def _program(path: Path, members: Mapping[str, memoryview]) -> bytes:
    if "data.pkl" not in members:
        raise InvalidInputError(f"{path}: a zip file, but not one that torch wrote: it has no data.pkl")
    if len(members["data.pkl"]) > PICKLE_BYTES:
        raise InvalidInputError(f"{path}: the pickle is longer than {PICKLE_BYTES} bytes")
    if bytes(members.get("byteorder", memoryview(b"little"))) != b"little":
        raise UnsupportedError(f"{path}: written on a big-endian machine")
    return bytes(members["data.pkl"])


def _run(path: Path, program: bytes, members: Mapping[str, memoryview]) -> Any:
    try:
        _check_opcodes(path, program)
        return _Machine(path, program, members).load()
    except _PICKLE_ERRORS as error:
        raise InvalidInputError(f"{path}: the pickle is damaged ({type(error).__name__}: {error})") from None


def _check_opcodes(path: Path, program: bytes) -> None:
    for count, (opcode, argument, _) in enumerate(pickletools.genops(program)):
        if opcode.name not in _OPCODES:
            raise InvalidInputError(f"{path}: the pickle uses {opcode.name}, which no state dict does; it was not run")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > count:
            _malformed("a memo that is larger than the program")  # the memo is an array as long as its highest index


class _Machine(pickle.Unpickler):
    """An unpickler for which only the names of a state dict exist."""

    def __init__(self, path: Path, program: bytes, members: Mapping[str, memoryview]) -> None:
        super().__init__(io.BytesIO(program))
        self._path = path
        self._members = members

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Call(_tensor)
            case "torch._utils", "_rebuild_tensor_v3":
                return _Call(_typed_tensor)
            case "torch._utils", "_rebuild_parameter":
                return _Call(_parameter)
            case "torch", storage if storage in _STORAGES:
                return _StorageType(_STORAGES[storage])
            case "torch.storage", "UntypedStorage":
                return _StorageType(_UNTYPED)
            case "torch", dtype if dtype in _DTYPES:
                return _Dtype(_DTYPES[dtype])
        raise InvalidInputError(f"{self._path}: the pickle wants to call {module}.{name}; refused, nothing was run")

    def persistent_load(self, pid: Any) -> _Storage:
        match pid:
            case ("storage", _StorageType(dtype), str(key), str(), int()):
                return _Storage(dtype, self._members[f"data/{key}"])
        raise pickle.UnpicklingError("an unknown kind of storage")


def _malformed(what: str) -> NoReturn:
    raise pickle.UnpicklingError(what)


def _tensor(storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    """Torch's tensor over a storage; offset and strides count elements."""
    lengths = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or not all(type(length) is int and length >= 0 for length in lengths):
        _malformed("a tensor over no storage, or with lengths that are none")
    if len(size) != len(stride) or len(size) > RANK_OF_SHAPE:
        _malformed("a tensor whose strides do not fit its shape")
    width = DTYPES[storage.dtype].size
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if prod(size) and (last + 1) * width > len(storage.data):
        _malformed("a tensor that reaches beyond its storage")
    if prod(size) * width > len(storage.data):
        _malformed("a tensor with more elements than its storage")
    dense = [prod(size[axis + 1 :]) for axis in range(len(size))]
    contiguous = all(length == 1 or step == want for length, step, want in zip(size, stride, dense, strict=True))
    window = storage.data[offset * width :]
    if contiguous:
        return Tensor(storage.dtype, tuple(size), window[: prod(size) * width])
    elements = np.frombuffer(window, dtype=f"u{width}", count=len(window) // width)
    view = np.lib.stride_tricks.as_strided(elements, size, [step * width for step in stride], writeable=False)
    return Tensor(storage.dtype, tuple(size), memoryview(view.tobytes()))


def _typed_tensor(
    storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], grad: object, hooks: object,
    dtype: _Dtype, *_: object,
) -> Tensor:  # fmt: skip
    """Torch's tensor of a type that has no storage class of its own, over a storage of bytes."""
    if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
        _malformed("a tensor over no storage, or of no type")
    return _tensor(_Storage(dtype.name, storage.data), offset, size, stride)


def _parameter(data: Tensor, *_: object) -> Tensor:
    return data
