"""Files at the limits of the container and just beyond them, built from pieces because they are large."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import canonical
import samples
from container import tensor
from draft import Draft
from vector import Vector, invalid, reading

HEADER_BYTES = 33_554_432
TENSORS = 65_536
VALUES = 2_097_152
"""Commas and opening brackets of strict JSON, at most."""

_RUN = 64
Pieces = tuple[dict[str, Any], ...]


def text(piece: str, times: int = 1) -> dict[str, Any]:
    """So many times the same text, with the number of the time in place of ``#``."""
    return {"text": piece, "times": times}


def many(piece: str, times: int) -> Pieces:
    """So many times the same text, in runs, so that the file is built in few steps."""
    runs, rest = divmod(times, _RUN)
    return tuple(text(piece * count, repeat) for count, repeat in ((_RUN, runs), (rest, 1)) if count and repeat)


def raw(data: bytes) -> dict[str, Any]:
    """These bytes."""
    return {"hex": data.hex()}


def length_of(piece: dict[str, Any]) -> int:
    """Bytes of a piece of text."""
    length: int = len(piece["text"].encode()) * piece["times"]
    marks = piece["text"].count("#")
    total: int = length + marks * (sum(len(str(number)) for number in range(piece["times"])) - piece["times"])
    return total


def headed(*pieces: dict[str, Any], data: bytes = b"") -> Pieces:
    """A file of this header and this data."""
    length = sum(map(length_of, pieces))
    return raw(length.to_bytes(8, "little")), *pieces, *([raw(data)] if data else [])


def split(draft: Draft) -> tuple[str, str, bytes]:
    """A file of one tensor, cut where its document could have another member in front; and its data."""
    whole = draft.file()
    length = int.from_bytes(whole[:8], "little")
    before, _, after = whole[8 : 8 + length].decode().rstrip().partition(r"{\"loreg\":1")
    return before + "{", r"\"loreg\":1" + after, whole[8 + length :]


def padded(total: int) -> Pieces:
    """The sound full target behind a header of so many bytes."""
    before, after, data = split(samples.full())
    return headed(text(before + after), *many(" ", total - len(before + after)), data=data)


def listed(zeros: int) -> Pieces:
    """The sound full target, its document with an unknown list of so many zeros."""
    before, after, data = split(samples.full())
    return headed(text(before + r"\"a\":[0"), *many(",0", zeros - 1), text("]," + after), data=data)


def values_of(draft: Draft) -> int:
    """Commas and opening brackets of a document; none of the names and digests has any."""
    spelled = canonical.encode(draft.document)
    return sum(spelled.count(mark) for mark in (b",", b"[", b"{"))


def vectors() -> Iterator[Vector]:
    """All of them."""
    draft = samples.full()
    expect = {"read": reading(draft), "validate": {"rules": []}}
    room = (
        VALUES - values_of(draft) - 1
    )  # the list brings a bracket, a comma less than its zeros, and a comma behind it
    yield Vector("valid/header-limit", "the longest header", (), expect, build=padded(HEADER_BYTES))
    yield Vector("valid/values-limit", "as many values as a document has at most", (), expect, build=listed(room))
    yield invalid("header-beyond", "R-001", "a header of one byte more, all of it there", padded(HEADER_BYTES + 1))
    yield invalid("values", "R-012", "a value too many", listed(room + 1))
    item = '"#":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
    last = '"t":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    yield invalid("tensors", "R-010", "one tensor too many", headed(text("{"), text(item, TENSORS), text(last)))
    yield invalid("values", "R-002", "a value too many", headed(text('{"t":[0'), *many(",0", VALUES - 1), text("]}")))
    yield invalid("depth-bomb", "R-002", "a million open brackets", headed(text('{"t":'), *many("[", 1_000_000)))
    yield invalid(
        "closed-depth-bomb", "R-002", "two hundred thousand nested lists",
        headed(text('{"t":'), *many("[", 200_000), *many("]", 200_000), text("}")),
    )  # fmt: skip
    yield invalid(
        "digits", "R-002", "an integer of ten million digits", headed(text('{"t":'), *many("9", 10_000_000), text("}"))
    )  # fmt: skip
    wide = samples.full(tensor("U8", (1,)))
    before, after, data = split(wide)
    yield invalid(
        "depth-bomb", "R-012", "a document of nested lists",
        headed(text(before + r"\"a\":"), *many("[", 100_000), *many("]", 100_000), text("," + after), data=data),
    )  # fmt: skip
