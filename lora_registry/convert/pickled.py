"""``adapter_model.bin``, ``pytorch_model.bin``: torch's zip files, read without torch and without running anything.

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
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from lora_registry.adapter import Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.limits import AXES, TENSORS

if TYPE_CHECKING:
    import numpy as np

PICKLE_BYTES = 64 << 20  # a state dict takes about 300 bytes a tensor
SHARING = 8  # tensors may share bytes, as tied weights do; all of them together are this many times the file at most
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


class _Sealed:
    """What a pickle may hold and pass on, and not change: the opcode BUILD sets the fields of other objects."""

    __slots__ = ("_content",)

    def __init__(self, content: Any) -> None:
        self._content = content

    @property
    def content(self) -> Any:
        return self._content

    def __setstate__(self, state: object) -> None:
        _malformed("an object whose fields are set from outside")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor, and where its bytes lie.

    Attributes:
        tensor: a window of the file where it is contiguous there, else a copy in row-major order.
        begin: offset of its first byte in the file; None for a copy.
    """

    tensor: Tensor
    begin: int | None


class _Storage(_Sealed):
    """The dtype, the bytes and the offset of a storage."""


class _StorageType(_Sealed):
    """The dtype of a storage."""


class _Dtype(_Sealed):
    """The name of a dtype."""


class _Rebuilt(_Sealed):
    """A :class:`Stored` tensor."""


class _Call(_Sealed):
    """One of our functions."""

    def __call__(self, *arguments: Any) -> _Rebuilt:
        return self.content(*arguments)  # type: ignore[no-any-return]


class _StateDict(OrderedDict[object, object]):
    """A mapping that keeps its methods: torch sets ``_metadata`` on it, which says nothing about the tensors."""

    def __setstate__(self, state: object) -> None:
        pass


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, as windows of the file where they are contiguous; see :func:`find_pickled`."""
    return {name: stored.tensor for name, stored in find_pickled(path).items()}


def find_pickled(path: Path) -> dict[str, Stored]:
    """The tensors of a state dict, and where they lie in the file.

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
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise InvalidInputError(f"{path}: the pickle is no state dict")
    if len(state) > TENSORS:
        raise InvalidInputError(f"{path}: {len(state)} tensors, at most {TENSORS}")
    for key, value in state.items():
        if not isinstance(value, _Rebuilt):
            raise InvalidInputError(f"{path}: {key!r} is no tensor")
    tensors: dict[str, Stored] = {key: value.content for key, value in state.items()}
    if sum(stored.tensor.nbytes for stored in tensors.values()) > SHARING * path.stat().st_size:
        raise InvalidInputError(f"{path}: its tensors take more than {SHARING} times the bytes of the file")
    return tensors


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, _Member]:
    """Name without the top folder to the member."""
    with path.open("rb") as stream:
        whole = memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    members: dict[str, _Member] = {}
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise InvalidInputError(f"{path}: the member {info.filename!r} is compressed, which torch does not write")
        fixed = whole[info.header_offset : info.header_offset + _LOCAL_HEADER.size]
        name_length, extra_length = _LOCAL_HEADER.unpack(fixed)[-2:]
        begin = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        name = info.filename.partition("/")[2]
        if begin + info.file_size > len(whole) or name in members:
            raise InvalidInputError(f"{path}: the member {info.filename!r} is truncated, or there twice")
        members[name] = _Member(begin, whole[begin : begin + info.file_size])
    return members


@dataclass(frozen=True, slots=True)
class _Member:
    """The offset of a member in the file, and its bytes."""

    begin: int
    data: memoryview


def _program(path: Path, members: Mapping[str, _Member]) -> bytes:
    if "data.pkl" not in members:
        raise InvalidInputError(f"{path}: a zip file, but not one that torch wrote: it has no data.pkl")
    if len(members["data.pkl"].data) > PICKLE_BYTES:
        raise InvalidInputError(f"{path}: the pickle is longer than {PICKLE_BYTES} bytes")
    if "byteorder" in members and bytes(members["byteorder"].data) != b"little":
        raise UnsupportedError(f"{path}: written on a big-endian machine")
    return bytes(members["data.pkl"].data)


def _run(path: Path, program: bytes, members: Mapping[str, _Member]) -> Any:
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

    def __init__(self, path: Path, program: bytes, members: Mapping[str, _Member]) -> None:
        super().__init__(io.BytesIO(program))
        self._path = path
        self._members = members
        self._budget = SHARING * path.stat().st_size

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return _StateDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _Call(self._tensor)
            case "torch._utils", "_rebuild_tensor_v3":
                return _Call(self._typed_tensor)
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
            case ("storage", _StorageType(content=dtype), str(key), str(), int()):
                return _Storage((dtype, self._members[f"data/{key}"]))
        raise pickle.UnpicklingError("an unknown kind of storage")

    def _tensor(self, storage: _Storage, *lengths: Any) -> _Rebuilt:
        """Torch's tensor over a storage."""
        if not isinstance(storage, _Storage):
            _malformed("a tensor over no storage")
        return self._over(*storage.content, *lengths[:3])

    def _typed_tensor(self, storage: _Storage, *arguments: Any) -> _Rebuilt:
        """Torch's tensor of a type that has no storage class of its own, over a storage of bytes."""
        offset, size, stride, _, _, dtype, *_ = arguments
        if not isinstance(storage, _Storage) or not isinstance(dtype, _Dtype):
            _malformed("a tensor over no storage, or of no type")
        return self._over(dtype.content, storage.content[1], offset, size, stride)

    def _over(
        self, dtype: str, member: _Member, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
    ) -> _Rebuilt:
        """A tensor over a member of the file; offset and strides count elements."""
        view = _view(dtype, member.data, offset, size, stride)
        self._budget -= view.nbytes
        if self._budget < 0:
            _malformed(f"tensors of more than {SHARING} times the bytes of the file")
        if view.flags.c_contiguous:
            begin = offset * view.itemsize
            window = member.data[begin : begin + view.nbytes]
            return _Rebuilt(Stored(Tensor(dtype, view.shape, window), member.begin + begin))
        return _Rebuilt(Stored(Tensor(dtype, view.shape, memoryview(view.tobytes())), None))


def _malformed(what: str) -> NoReturn:
    raise pickle.UnpicklingError(what)


def _view(
    dtype: str, data: memoryview, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> np.ndarray[Any, np.dtype[Any]]:
    """The elements as unsigned integers of their width; nothing is copied. Offset and strides count elements."""
    import numpy as np

    lengths = (offset, *size, *stride)
    if not all(type(length) is int and length >= 0 for length in lengths):
        _malformed("a tensor with lengths that are none")
    if len(size) != len(stride) or len(size) > AXES:
        _malformed("a tensor whose strides do not fit its shape")
    width = DTYPES[dtype].size
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    if prod(size) and (last + 1) * width > len(data):
        _malformed("a tensor that reaches beyond its storage")
    if prod(size) * width > len(data):
        _malformed("a tensor with more elements than its storage")
    window = data[offset * width :]
    elements = np.frombuffer(window, dtype=f"u{width}", count=len(window) // width)
    return np.lib.stride_tricks.as_strided(elements, size, [step * width for step in stride], writeable=False)


def _parameter(data: _Rebuilt, *_: object) -> _Rebuilt:
    return data
