"""JSON as adapter-format.md 1.0 has it: strict where it is read (section 6), canonical where it is hashed (11)."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

MAX_DEPTH, MAX_VALUES = 32, 2_097_152
STRING = re.compile(r'"(?:[^"\\]++|\\.)*+"')


class RefusalError(Exception):
    """A request that is refused; `code` is one of section 15."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def strict_object(text: str) -> dict[str, Any]:
    """The object in a text of strict JSON; ValueError for any other text."""
    if sum(map(STRING.sub("", text).count, ",[{")) > MAX_VALUES:
        raise ValueError("too many values")
    hooks: dict[str, Any] = {"parse_int": integer, "parse_float": number, "parse_constant": number}
    try:
        value = json.loads(text, object_pairs_hook=unique, **hooks)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    json.dumps(value, ensure_ascii=False).encode()  # which fails for half of a surrogate pair
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [child for outer in level for child in children(outer)]
    if level or not isinstance(value, dict):
        raise ValueError("nested too deeply, or no object")
    return value


def children(value: Any) -> Iterable[Any]:
    """The values one level below."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def number(text: str) -> float:
    """A finite number; canonical form writes whole ones below 1e21 as integers, which end at 2**53 - 1."""
    value = float(text)
    if not math.isfinite(value) or 2**53 - 1 < abs(value) < 1e21:
        raise ValueError(f"{text[:40]} is out of range")
    return value


def integer(text: str) -> float:
    """A number without fraction and exponent; -0 and 1.0 are floats, and no integers of this format."""
    value = number(text)
    return value if text == "-0" else int(text)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, none of them twice."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same member twice")
    return members


def canonical(value: Any) -> str:
    """Canonical JSON (RFC 8785): members sorted by UTF-16 code units, no white space."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return "{" + ",".join(f"{canonical(name)}:{canonical(value[name])}" for name in names) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical, value)) + "]"
    if value is None or isinstance(value, str | bool):
        return json.dumps(value, ensure_ascii=False)
    return canonical_number(float(value))


def canonical_number(value: float) -> str:
    """The shortest digits that read back as this binary64, laid out as ECMAScript's Number::toString does."""
    decimal = Decimal(repr(value)).normalize()
    digits, point = "".join(map(str, decimal.as_tuple().digits)), decimal.adjusted() + 1
    if -6 < point <= 21:
        return f"{decimal:f}" if value else "0"
    return f"{'-' * (value < 0)}{digits[0]}{'.' * (len(digits) > 1)}{digits[1:]}e{point - 1:+d}"


def digest(data: bytes) -> str:
    """The sha256 of bytes as section 2 writes it."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_digest(value: Any) -> bool:
    """Whether it is written as section 2 writes a digest."""
    return isinstance(value, str) and re.fullmatch("sha256:[0-9a-f]{64}", value) is not None
