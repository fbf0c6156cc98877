"""The bytes of a file, right or wrong: framing, records, placement, and the pieces of files beyond 4 KiB."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import canonical
import floats
from floats import Number


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor: element type, shape, and bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def digest(self) -> str:
        """The digest of the bytes, as a document states it."""
        return "sha256:" + hashlib.sha256(self.data).hexdigest()

    @property
    def values(self) -> list[Any]:
        """The exact numbers, in row-major order."""
        return floats.decode(self.dtype, self.data)


def tensor(dtype: str, shape: Iterable[int], values: Iterable[Number] | None = None) -> Tensor:
    """A tensor with these numbers; without any, with small ones that differ and that every element type holds."""
    shape = tuple(shape)
    count = prod(shape)
    numbers = [(index * 5 + count) % 7 + 1 for index in range(count)] if values is None else list(values)
    if dtype == "BOOL" and values is None:
        numbers = [index % 2 for index in range(count)]
    assert len(numbers) == count, (shape, numbers)
    return Tensor(dtype, shape, floats.encode(dtype, numbers))


def record(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    """The record of a tensor in a header; what is not given is sound for eight bytes."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def framed(header: bytes | Mapping[str, Any], data: bytes = b"") -> bytes:
    """A file of this header and this data."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + data


def placed(tensors: Mapping[str, Tensor]) -> list[str]:
    """The keys in the order of P-021: wider elements first, then by key."""
    return sorted(tensors, key=lambda key: (-floats.size_of(tensors[key].dtype), key))


def records(tensors: Mapping[str, Tensor], order: Iterable[str]) -> dict[str, Any]:
    """The records of tensors that follow each other in this order."""
    result, position = {}, 0
    for key in order:
        item = tensors[key]
        result[key] = record(item.dtype, list(item.shape), [position, position + len(item.data)])
        position += len(item.data)
    return result


def sealed(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None) -> bytes:
    """A file as a writer writes it: canonical header, padding, placement (P-020, P-021)."""
    order = placed(tensors)
    header = records(tensors, order) | ({} if metadata is None else {"__metadata__": dict(metadata)})
    text = canonical.encode(header)
    return framed(text + b" " * (-len(text) % 8), b"".join(tensors[key].data for key in order))
