"""Files whose bytes break a rule before anything in them is believed: R-001 to R-008."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from container import framed, record
from vector import Vector, invalid

HEADER_BYTES = 33_554_432
AXIS_LENGTH = 1 << 40
BEYOND = 1 << 53
DEPTH = 32


def one(data: bytes = bytes(8), **fields: Any) -> bytes:
    """A file with one tensor whose record has these fields."""
    return framed({"t": record(**fields)}, data)


def spelled(shape: str, offsets: str) -> bytes:
    """A file with one tensor whose record has these texts as shape and offsets."""
    return framed(f'{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}'.encode(), bytes(8))


SOUND = one()
TWICE = b'{"t":%b,"t":%b}' % ((json.dumps(record()).encode(),) * 2)


def deep(depth: int) -> bytes:
    """A header whose one record is so many nested lists."""
    return framed(b'{"t":' + b"[" * depth + b"]" * depth + b"}")


LENGTH = (
    ("empty", "nothing at all", b""),
    ("seven-bytes", "too short for the length of the header", bytes(7)),
    ("header-2-63", "a length with its highest bit set", (1 << 63).to_bytes(8, "little") + b"{}"),
    ("header-2-64", "the largest length", b"\xff" * 8 + b"{}"),
    ("header-limit", "a length beyond the limit", (HEADER_BYTES + 1).to_bytes(8, "little") + b"{}"),
    ("header-truncated", "the file ends in the header", SOUND[:20]),
    ("header-last-byte", "the header lacks its last byte", framed(b'{"t":{}}')[:-1]),
)
JSON = (
    ("header-empty", "a header of no bytes", framed(b"")),
    ("leading-space", "the header begins with a space", framed(b" {}")),
    ("byte-order-mark", "the header begins with a byte order mark", framed(b"\xef\xbb\xbf{}")),
    ("array", "the header is an array", framed(b"[]")),
    ("second-object", "something follows the object", framed(b"{}{}")),
    ("padded-nul", "padding of zero bytes", framed(b"{}\0\0\0\0\0\0")),
    ("half", "half an object", framed(b'{"t":')),
    ("comment", "a comment", framed(b"{/* */}")),
    ("trailing-comma", "a comma after the last member", framed(b'{"__metadata__":{},}')),
    ("single-quotes", "a name in single quotes", framed(b"{'__metadata__':{}}")),
    ("not-utf-8", "a byte that UTF-8 does not have", framed(b'{"\xff":1}')),
    ("overlong", "an overlong encoding", framed(b'{"\xc0\xaf":1}')),
    ("surrogate-bytes", "half of a surrogate pair as bytes", framed(b'{"\xed\xa0\x80":1}')),
    ("surrogate-value", "half of a surrogate pair in the string map", framed(rb'{"__metadata__":{"a":"\udfff"}}')),
    ("map-twice", "the string map twice", framed(b'{"__metadata__":{},"__metadata__":{}}')),
    ("surrogate-escape", "half of a surrogate pair as an escape", framed(rb'{"\ud800":1}')),
    ("control-character", "a line feed in a string", framed(b'{"a\nb":1}')),
    ("nan", "NaN", framed(b'{"t":NaN}')),
    ("infinity", "an infinity", framed(b'{"t":-Infinity}')),
    ("number-beyond", "a number beyond binary64", framed(b'{"t":1e400}')),
    ("leading-zero", "a number with a leading zero", framed(b'{"t":01}')),
    ("integer-beyond", "an integer beyond 2**53 - 1", one(shape=[BEYOND])),
    ("many-digits", "an integer of three thousand digits", framed(b'{"t":' + b"9" * 3000 + b"}")),
    ("two-names", "two tensors of one name", framed(TWICE, bytes(8))),
    ("two-spellings", "one name in two spellings", framed(rb'{"t":1,"\u0074":1}')),
    ("metadata-twice", "a key of the string map twice", framed(b'{"__metadata__":{"a":"1","a":"2"}}')),
    ("field-twice", "a field of a record twice", framed(b'{"t":{"dtype":"F32","dtype":"F64"}}')),
    ("too-deep", "one level of nesting too many", deep(DEPTH + 1)),
)
RECORDS = (
    ("metadata-number", "a number in the string map", framed({"__metadata__": {"a": 1}})),
    ("metadata-list", "a list as the string map", framed({"__metadata__": []})),
    ("metadata-null", "null as the string map", framed({"__metadata__": None})),
    ("tensor-string", "a tensor that is a string", framed({"t": "F32"})),
    ("tensor-lists", "a tensor that is nested as deep as JSON goes here", deep(DEPTH)),
    ("field-too-many", "a record with a fourth field", framed({"t": record() | {"offset": 0}}, bytes(8))),
    ("field-too-few", "a record without offsets", framed({"t": {"dtype": "F32", "shape": []}}, bytes(4))),
)
TYPES = (
    ("unknown", "an element type that nobody knows", one(dtype="F128")),
    ("half-byte", "an element type of half a byte", one(dtype="F4")),
    ("lower-case", "an element type in lower case", one(dtype="f32")),
    ("list", "an element type that is a list", one(dtype=["F32"])),
)
SHAPES = (
    ("true", "true as a length", one(shape=[True, 2])),
    ("negative", "a negative length", one(b"", shape=[-2, 0], offsets=[0, 0])),
    ("fraction", "a length with a fraction", spelled("[2.0]", "[0,8]")),
    ("exponent", "a length with an exponent", spelled("[2e0]", "[0,8]")),
    ("string", "a length that is a string", one(shape=["2"])),
    ("number", "a shape that is a number", one(shape=2)),
    ("null", "a shape that is null", one(shape=None)),
    ("nine-axes", "an axis too many", one(shape=[2] + [1] * 8)),
    ("axis-limit", "an axis beyond the limit", one(b"", shape=[AXIS_LENGTH + 1, 0], offsets=[0, 0])),
    ("two-negatives", "two negative lengths with a positive product", one(shape=[-1, -2])),
)  # fmt: skip
OFFSETS = (
    ("descending", "offsets that descend", one(offsets=[8, 0])),
    ("negative", "a negative offset", one(offsets=[-8, 0])),
    ("three", "three offsets", one(offsets=[0, 8, 8])),
    ("booleans", "offsets that are booleans", one(shape=[0], offsets=[False, False])),
    ("fraction", "an offset with a fraction", spelled("[2]", "[0.0,8.0]")),
    ("minus-zero", "an offset of -0, which parsers read differently", spelled("[2]", "[-0,8]")),
    ("span-short", "offsets that span too little", one(offsets=[0, 4])),
    ("span-long", "offsets that span too much", one(bytes(16), offsets=[0, 16])),
    ("wraps-to-zero", "a product that is 0 in 64 bits", one(b"", shape=[1 << 32, 1 << 32], offsets=[0, 0])),
    ("wraps-to-eight", "a product that is 8 in 64 bits", one(shape=[(1 << 31) + 1, 1 << 33, 2], offsets=[0, 8])),
)  # fmt: skip
COVERAGE = (
    ("overlap", "two tensors share bytes", framed({"t": record(), "u": record(offsets=[4, 12])}, bytes(12))),
    ("same-range", "two names for one range", framed({"t": record(), "u": record()}, bytes(8))),
    ("inside", "a tensor inside another", framed({"t": record("U8", [8]), "u": record("U8", [2], [4, 6])}, bytes(8))),
    (
        "empty-inside",
        "a tensor of no bytes inside another",
        framed({"t": record("U8", [8]), "u": record("U8", [0], [4, 4])}, bytes(8)),
    ),
    ("hole", "bytes between two tensors", framed({"t": record(), "u": record(offsets=[16, 24])}, bytes(24))),
    ("hole-at-start", "bytes before the first tensor", one(bytes(16), offsets=[8, 16])),
)
DATA = (
    ("truncated", "the data lacks its last byte", SOUND[:-1]),
    ("trailing", "a byte after the last tensor", SOUND + b"\0"),
    ("no-tensor", "data of no tensor", framed({}, b"\0")),
)


def vectors() -> Iterator[Vector]:
    """All of them."""
    tables = {
        "R-001": LENGTH, "R-002": JSON, "R-003": DATA, "R-004": RECORDS,
        "R-005": TYPES, "R-006": SHAPES, "R-007": OFFSETS, "R-008": COVERAGE,
    }  # fmt: skip
    for rule, cases in tables.items():
        for name, why, data in cases:
            yield invalid(name, rule, why, data)
