"""Canonical JSON: RFC 8785, written from that text, and the canonical form of a document (rule P-019)."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

Json = Any

_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_NEVER_EMPTY = (
    *("requires", "base", "info", "origin"),
    *("tokenizer", "lineage", "training", "extensions"),
)


def encode(value: Json) -> bytes:
    """The canonical bytes of a JSON value."""
    return _text(value).encode("utf-8")


def _text(value: Json) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str):
        return '"' + "".join(_letter(letter) for letter in value) + '"'
    if isinstance(value, list):
        return "[" + ",".join(map(_text, value)) + "]"
    members = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be"))
    return "{" + ",".join(f"{_text(key)}:{_text(item)}" for key, item in members) + "}"


def _letter(letter: str) -> str:
    if letter in _SHORT:
        return _SHORT[letter]
    return f"\\u{ord(letter):04x}" if letter < " " else letter


def number(value: float) -> str:
    """A binary64 as Number::toString of ECMA-262 writes it, from its shortest digits and their place."""
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    if not value:
        return "0"
    assert isinstance(exponent, int)  # Decimal has letters there for NaN and infinities
    text, count = "".join(map(str, digits)), len(digits)
    place = exponent + count  # the value is 0.DIGITS times ten to this power
    minus = "-" if sign else ""
    if count <= place <= 21:
        return minus + text + "0" * (place - count)
    if 0 < place <= 21:
        return minus + text[:place] + "." + text[place:]
    if -6 < place <= 0:
        return minus + "0." + "0" * -place + text
    tail = "." + text[1:] if count > 1 else ""
    return f"{minus}{text[0]}{tail}e{place - 1:+d}"


def canonical_document(document: Json) -> Json:
    """A sound document as a writer writes it: without what is empty, and without what has its default (P-019)."""
    result = {key: value for key, value in document.items() if not (key in _NEVER_EMPTY and not value)}
    if "requires" in result:
        result["requires"] = {side: names for side, names in result["requires"].items() if names}
        if not result["requires"]:
            del result["requires"]
    result["targets"] = {name: canonical_target(target) for name, target in document["targets"].items()}
    return result


def canonical_target(target: Json) -> Json:
    """The canonical form of a target."""
    result = dict(target)
    if not result.get("layout", True):
        del result["layout"]
    if result.get("groups") == 1:
        del result["groups"]
    if "segments" in result:
        segments = result["segments"] = dict(result["segments"])
        if segments.get("interleave") == 1:
            del segments["interleave"]
        segments["parts"] = [_canonical_part(part) for part in segments["parts"]]
    return result


def _canonical_part(part: Json) -> Json:
    rope = part.get("rope", {})
    if rope and rope.get("rotary") == rope["head"]:
        return part | {"rope": {"head": rope["head"], "order": rope["order"]}}
    return part
