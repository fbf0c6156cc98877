"""Other spellings of sound files, and the one that a writer has for them (P-019 to P-022)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from struct import unpack
from typing import Any

import canonical
import container
import samples
from container import framed, placed, records, tensor
from draft import Draft, adapter
from vector import Vector, sound

NUMBERS = {
    "0000000000000000": "0", "8000000000000000": "0", "0000000000000001": "5e-324", "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308", "ffefffffffffffff": "-1.7976931348623157e+308",
    "44b52d02c7e14af5": "9.999999999999997e+22", "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23", "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7", "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332", "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333", "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343", "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}  # fmt: skip
"""RFC 8785, appendix B, without the integers that strict JSON does not have: bits of a binary64, and its text."""

SPELLINGS = {
    "1E30": "1e+30", "4.50": "4.5", "2e-3": "0.002", "0.000000000000000000000000001": "1e-27", "-0": "0",
    "-0.0e9": "0", "1e-400": "0", "9.007199254740991e15": "9007199254740991", "-9007199254740991": "-9007199254740991",
    "9007199254740991.4": "9007199254740991", "0.1e1": "1", "100e-2": "1", "1e21": "1e+21", "1e-7": "1e-7",
    "0.00000123e+1": "0.0000123", "123456789.125000": "123456789.125", "4.9406564584124654e-324": "5e-324",
    "2.4703282292062328e-324": "5e-324", "2.4703282292062327e-324": "0",
    "1.7976931348623158e308": "1.7976931348623157e+308", "0.30000000000000004": "0.30000000000000004",
    "0.1": "0.1", "5e-1": "0.5", "1.0": "1", "12345678901234567e-2": "123456789012345.67",
    "1000000000000000000000": "1e+21", "999999999999999999999": "1e+21",
    "-123456789012345678901234567890": "-1.2345678901234568e+29", "1e22": "1e+22", "-1E+0022": "-1e+22",
}  # fmt: skip
"""Numbers in other spellings, and their canonical ones."""

SCALES = {
    "2.0": 2,
    "2e0": 2,
    "20E-1": 2,
    "0.50": 0.5,
    "-0.0": 0,
    "1e-400": 0,
    "1e+22": 1e22,
    "0.1000000000000000055": 0.1,
}
KEYS = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6", "10", "2", "", "A", "a", "__proto__", "\u2028"]
LETTERS = "".join(map(chr, range(0x20))) + '"\\/\x7f\u0080\u2028\u20ac\U0001f600e\u0301\u00e9\ufffd'


def respelled(draft: Draft, old: str, new: str) -> bytes:
    """A draft with one part of its document in another spelling."""
    text = canonical.encode(draft.document).decode()
    assert old in text, old
    return draft.file(text.replace(old, new, 1))


def vectors() -> Iterator[Vector]:
    """All of them."""
    for name, why, rules, draft, data in (*_json(), *_headers(), *_defaults()):
        yield sound(name, why, draft, data=data, rules=rules, folder="canonical")


Case = tuple[str, str, tuple[str, ...], Draft, bytes]


def _binary64(digits: str) -> int | float:
    """The number of an integer's digits, where it is one that every program reads as an integer."""
    return int(digits) if abs(int(digits)) < 1 << 53 else float(digits)


def _with(**fields: Any) -> Draft:
    draft = samples.linear()
    draft.document.update(fields)
    return draft


def _json() -> Iterator[Case]:
    rules = ("P-019",)
    values = [unpack(">d", bytes.fromhex(bits))[0] for bits in NUMBERS]
    assert [canonical.number(value) for value in values] == list(NUMBERS.values())
    draft = _with(numbers=values)
    spelled = ",".join(f"{value:.20E}" for value in values)
    yield "numbers-rfc-8785", "the numbers of RFC 8785 in twenty digits", rules, draft, respelled(
        draft, ",".join(NUMBERS.values()), spelled
    )  # fmt: skip
    draft = _with(numbers=[json.loads(text, parse_int=_binary64) for text in SPELLINGS])
    assert canonical.encode(draft.document["numbers"]).decode() == f"[{','.join(SPELLINGS.values())}]"
    yield "numbers-spellings", "numbers in other spellings", rules, draft, respelled(
        draft, ",".join(SPELLINGS.values()), ",".join(SPELLINGS)
    )  # fmt: skip
    for text, scale in SCALES.items():
        draft = samples.linear(scale=scale)
        spelled_scale = f'"scale":{canonical.number(float(scale))}'
        yield (
            f"scale-{text}",
            "a scale in another spelling",
            rules,
            draft,
            respelled(draft, spelled_scale, f'"scale":{text}'),
        )
    draft = _with(keys={key: number for number, key in enumerate(KEYS)})
    yield "keys", "members in the order of UTF-16 code units", rules, draft, draft.file(_plain(draft))
    draft = _with(letters=LETTERS, escaped=LETTERS)
    escaped = "".join(
        f"\\u{unit:04X}" for unit in unpack(f">{len(LETTERS.encode('utf-16-be')) // 2}H", LETTERS.encode("utf-16-be"))
    )
    shortest = canonical.encode(LETTERS).decode()
    yield "strings", "escapes where they are needed, in the short form where there is one", rules, draft, respelled(
        draft, f'"escaped":{shortest}', f'"escaped":"{escaped}"'
    )  # fmt: skip
    draft = _with(literals=[None, True, False, {}, [], ""])
    yield "literals", "literals and what is empty", rules, draft, draft.file(_plain(draft))
    draft = _with(info={"title": "a/b"})
    yield "solidus", "a solidus that is escaped", rules, draft, respelled(draft, "a/b", "a\\/b")
    yield "member-names", "escapes in the names of members", rules, samples.linear(), respelled(
        samples.linear(), '"kind"', '"\\u006b\\u0069nd"'
    )  # fmt: skip
    draft = samples.linear()
    spaced = json.dumps(draft.document, indent="\t").replace("\n", "\r\n")
    yield "white-space", "white space in the document", rules, draft, draft.file(f" {spaced}\n ")
    around = f"\t\r\n {canonical.encode(draft.document).decode()} \n\r\t"
    yield "white-space-around", "white space of all kinds around the document", rules, draft, draft.file(around)
    yield "order", "members in another order", rules, draft, draft.file(_plain(draft, backwards=True))
    draft = _with(x=_nested(31, 0), y=_nested(31, []))
    yield "deep", "nesting as deep as it goes", (), draft, draft.file(" " + _plain(draft))


def _plain(draft: Draft, *, backwards: bool = False) -> str:
    """A document as the json module writes it, the members of its objects in their own order or the reverse."""

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(item) for key, item in reversed(value.items())}
        return value

    return json.dumps(turned(draft.document) if backwards else draft.document)


def _nested(depth: int, inside: Any) -> Any:
    for _ in range(depth):
        inside = [inside]
    return inside


def _headers() -> Iterator[Case]:
    rules = ("P-020", "P-021", "P-022")
    draft = samples.linear({"A": tensor("F64", (2, 4)), "B": tensor("BF16", (3, 2)), "magnitude": tensor("F32", (3,))})
    text = canonical.encode(draft.document).decode()
    metadata = {"__metadata__": {"loreg": text}}
    for name, why, order in (
        ("by-key", "tensors in the order of their keys", sorted(draft.tensors)),
        ("narrow-first", "tensors in the reverse of a writer's order", placed(draft.tensors)[::-1]),
    ):
        data = b"".join(draft.tensors[key].data for key in order)
        yield f"header-{name}", why, rules, draft, framed(records(draft.tensors, order) | metadata, data)
    order = placed(draft.tensors)
    data = b"".join(draft.tensors[key].data for key in order)
    header = records(draft.tensors, order) | metadata
    plain = canonical.encode(header)
    moved = plain.replace(b'"dtype":"BF16",', b"").replace(b'"shape":[3,2]', b'"shape":[3,2],"dtype":"BF16"')
    escaped = plain.replace(b'"w/A"', b'"\\u0077\\/A"').replace(b'"F64"', b'"F\\u00364"')
    spelled = {
        "indented": ("white space in the header", json.dumps(header, indent=1).encode()),
        "not-padded": ("a header of odd length", plain + b" " * (len(plain) % 2 ^ 1)),
        "padded-more": ("more padding than needed, of all white space", plain + b" \t\r\n" * 20),
        "backwards": ("members of the header in another order", json.dumps(dict(reversed(header.items()))).encode()),
        "fields": ("fields of a record in another order", moved),
        "escaped": ("escapes in keys and element types", escaped),
    }  # fmt: skip
    for name, (why, head) in spelled.items():
        yield f"header-{name}", why, rules, draft, framed(head, data)
    draft = samples.full(tensor("U8", (3,)))
    draft = adapter(
        {
            "b": _value("U8", 3),
            "a": _value("U8", 3),
            "B": _value("U8", 1),
            "c": _value("I64", 1),
            "10": _value("U8", 1),
            "9": _value("U8", 1),
        }
    )
    order = ["b/value", "a/value", "10/value", "9/value", "c/value", "B/value"]
    data = b"".join(draft.tensors[key].data for key in order)
    header = records(draft.tensors, order) | {"__metadata__": {"loreg": canonical.encode(draft.document).decode()}}
    yield "placement", "elements of one size in the order of their keys", rules, draft, framed(header, data)


def _value(dtype: str, count: int) -> tuple[dict[str, Any], dict[str, container.Tensor]]:
    return {"kind": "full", "shape": [count]}, {"value": tensor(dtype, (count,))}


def _defaults() -> Iterator[Case]:
    rules = ("P-019",)
    empty: dict[str, Any] = {
        name: {} for name in ("requires", "base", "info", "origin", "tokenizer", "training", "extensions")
    }
    for name, fields in ({name: {name: {}} for name in empty} | {"all": empty}).items():
        draft = _with(**fields)
        yield f"empty-{name}", "an object that is empty is left out", rules, draft, draft.file()
    lists: dict[str, Any] = {
        "read": {"read": []},
        "both": {"read": [], "write": []},
        "one": {"read": [], "write": ["com.example.x"]},
    }
    for name, requires in lists.items():
        draft = _with(requires=requires)
        yield f"empty-requires-{name}", "lists of requirements that are empty", rules, draft, draft.file()
    kept = _with(
        x={}, y=None, z=[],
        info={"tags": []}, base={"empty": {}}, extensions={"com.example.x": {}}, tokenizer={"added": []},
        lineage={"operation": "", "parameters": {}, "parents": []}, training={"datasets": []},
    )  # fmt: skip
    yield "empty-kept", "everything else that is empty is kept", rules, kept, kept.file(" " + _plain(kept))
    draft = samples.full(layout=[])
    yield "layout-empty", "an empty layout is none", rules, draft, draft.file()
    draft = samples.sparse()
    draft.target("w")["layout"] = []
    yield "layout-empty-sparse", "the same of a sparse target", rules, draft, draft.file()
    draft = samples.conv(2, groups=1)
    yield "groups-1", "one group is no group", rules, draft, draft.file()
    parts = [
        {"name": "q", "length": 4, "rope": {"head": 4, "order": "halves", "rotary": 4}},
        {"name": "k", "length": 2, "rope": {"head": 2, "order": "pairs"}},
    ]
    draft = samples.linear({"B": tensor("F32", (6, 2))}, shape=[6, 4], segments={"parts": parts, "interleave": 1})
    yield "segments", "one block, and a rotation of whole heads", rules, draft, draft.file()
