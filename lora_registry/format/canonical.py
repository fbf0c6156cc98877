"""JSON with exactly one spelling: RFC 8785 on the way out, strict I-JSON (RFC 7493) on the way in.

Equal values give equal bytes, whichever language wrote them; that is what digests are taken of.
"""

from __future__ import annotations

import json
import math
import re
from itertools import islice
from typing import Any, NoReturn, TypeGuard

from lora_registry.adapter import Json
from lora_registry.format.limits import JSON_DEPTH, JSON_SEPARATORS, SAFE_INTEGER

_ESCAPES = {0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\"}
_TO_ESCAPE = {code: f"\\u{code:04x}" for code in range(0x20)} | _ESCAPES


_BETWEEN = r'(?:[^",\[{]++|"(?:[^"\\]|\\.)*+"?)'
_UP_TO_SEPARATOR = re.compile(rf"{_BETWEEN}*+[,\[{{]|{_BETWEEN}++", re.DOTALL)
"""A separator and what stands before it, strings skipped; or what stands behind the last one."""

_INTEGER = frozenset({int})
_CONTAINERS = (dict, list)

_EXPONENT = 1e21
"""Numbers from here on are written with an exponent (ECMA-262, Number::toString)."""


class JsonError(ValueError):
    """The text is not I-JSON, or the value has no canonical form."""


def encode(value: Json) -> bytes:
    """The canonical UTF-8 bytes of ``value`` (RFC 8785).

    Raises:
        JsonError: NaN or an infinity, a number that would be written as an integer beyond 2**53 - 1, a lone
            surrogate, a key that is no string, nesting deeper than ``JSON_DEPTH``, or more than
            ``JSON_SEPARATORS``.
    """
    text = _text(value, 0)
    _check_separators(text)
    return text.encode("utf-8")


def decode(data: bytes | str) -> Json:
    """Parse JSON and refuse what parsers disagree about.

    Raises:
        JsonError: not UTF-8, not JSON, a duplicate key, NaN or Infinity, a number beyond float64,
            one whose canonical form is an integer beyond 2**53 - 1, a lone surrogate, nesting deeper than
            ``JSON_DEPTH``, or more than ``JSON_SEPARATORS``.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    _check_separators(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_float,
        )
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON at character {error.pos}: {error.msg}") from None
    except RecursionError:
        raise _too_deep() from None
    _check_depth(value)
    if not text.isascii() or "\\ud" in text or "\\uD" in text:  # else there is no surrogate, escaped or not
        _check_pairs(value)
    return value  # type: ignore[no-any-return]


def is_integers(value: Json) -> TypeGuard[list[int]]:
    """Whether ``value`` is a list of integers; ``true`` is none."""
    return isinstance(value, list) and _INTEGER.issuperset(map(type, value))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise JsonError(f"the key {twice!r} stands twice in one object")
    return result


def _constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not JSON")


def _integer(digits: str) -> int | float:
    if digits == "-0":  # no integer to most parsers; the reference library of safetensors refuses it as an offset
        return -0.0
    if len(digits) < 16:
        return int(digits)
    if abs(float(digits)) >= _EXPONENT:  # no integer in canonical form; also spares int() a million digits
        return _float(digits)
    if abs(int(digits)) > SAFE_INTEGER:
        raise JsonError(f"the integer {digits} is beyond 2**53 - 1")
    return int(digits)


def _float(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise JsonError(f"the number {digits[:24]} is beyond float64")
    _check_float(value)
    return value


def _check_float(value: float) -> None:
    """Refuse what has no fraction and is written without exponent: it reads back as an integer, and as none."""
    if SAFE_INTEGER < abs(value) < _EXPONENT:
        raise JsonError(f"the number {value!r} is written as an integer beyond 2**53 - 1")


def _check_separators(text: str) -> None:
    """Refuse what would take gigabytes once parsed, before it is; the quick looks count those in strings too."""
    if len(text) <= JSON_SEPARATORS or sum(map(text.count, ",[{")) <= JSON_SEPARATORS:
        return
    if next(islice(_UP_TO_SEPARATOR.finditer(text), JSON_SEPARATORS + 1, None), None) is not None:
        raise JsonError(f"more than {JSON_SEPARATORS} commas and opening brackets")


def _too_deep() -> JsonError:
    return JsonError(f"nested deeper than {JSON_DEPTH}")


def _check_depth(value: Json) -> None:
    """Refuse depth, one level of nesting after the other."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(JSON_DEPTH):
        if not level:
            return
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, _CONTAINERS)
        ]
    if any(level):
        raise _too_deep()


def _check_pairs(value: Json) -> None:
    """Refuse lone surrogates, which ``json.loads`` lets through."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise _half() from None


def _half() -> JsonError:
    return JsonError("a string holds half of a surrogate pair")


def _check_text(text: str) -> None:
    if not text.isascii() and any(0xD800 <= ord(letter) <= 0xDFFF for letter in text):
        raise _half()


def _text(value: Json, depth: int) -> str:
    if depth > JSON_DEPTH:
        raise _too_deep()
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case str():
            _check_text(value)
            return f'"{value.translate(_TO_ESCAPE)}"'
        case int():
            if abs(value) > SAFE_INTEGER:
                raise JsonError(f"the integer {value} is beyond 2**53 - 1")
            return str(value)
        case float():
            _check_float(value)
            return number(value)
        case list() | tuple():
            return f"[{','.join(_text(item, depth + 1) for item in value)}]"
        case dict():
            if not all(isinstance(key, str) for key in value):
                raise JsonError("an object key is not a string")
            # RFC 8785 sorts by UTF-16 code units, which differs from code points above the BMP.
            ordered = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
            return f"{{{','.join(f'{_text(key, 0)}:{_text(item, depth + 1)}' for key, item in ordered)}}}"
    raise JsonError(f"{type(value).__name__} has no JSON form")


def number(value: float) -> str:
    """A float64 as ECMAScript prints it (ECMA-262, Number::toString), which RFC 8785 prescribes.

    Python's ``repr`` finds the same shortest digits and lays them out otherwise.
    """
    if not math.isfinite(value):
        raise JsonError(f"{value} has no JSON form")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # value = 0.digits x 10**point
    point = len(whole) + int(exponent or 0)
    if whole == "0":
        point -= len(fraction) - len(fraction.lstrip("0")) + 1
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        return f"{sign}{digits}{'0' * (point - count)}"
    if 0 < point <= 21:
        return f"{sign}{digits[:point]}.{digits[point:]}"
    if -6 < point <= 0:
        return f"{sign}0.{'0' * -point}{digits}"
    tail = f".{digits[1:]}" if count > 1 else ""
    return f"{sign}{digits[0]}{tail}e{point - 1:+d}"
