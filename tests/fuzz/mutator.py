"""Changes to a native file that get past the parsers: to its two trees of JSON, not to the bytes they are written in.

A file is taken apart into header, document and data, one to four things in it are changed, and it is put together
again; most times so that offsets and digests fit again, because otherwise hardly any change is seen beyond R-007
and R-035. Blind changes of bytes are what libFuzzer itself is for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import sha256
from math import prod
from random import Random
from typing import Any

from lora_registry.adapter import LAYOUTS, Kind
from lora_registry.dtypes import DTYPES
from lora_registry.format.features import FEATURES
from lora_registry.format.target_rules import ROLES

Slot = tuple[Any, Any]
"""A container and the key or index of something in it."""

DATA_LIMIT = 1 << 16
"""Bytes of data beyond which tensors are not made to fit."""


class Raw(str):
    """Text that stands in JSON as it is, where no value would be written so."""

    __slots__ = ()


NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 3, 4, 8, 10, 255, 1 << 31, 1 << 40, (1 << 40) + 1, (1 << 53) - 1, 1 << 53, 10**20, -(10**30)),
    *(0.5, 1e21, 1e308, 5e-324, 1e-7, 0.1 + 0.2),
    *(Raw("-0"), Raw("1.0"), Raw("1e0"), Raw("0.1e1"), Raw("-0.0"), Raw("1e400"), Raw("9" * 40), Raw("NaN"), Raw("01")),
)
WORDS: tuple[Any, ...] = (
    *(
        "",
        "loreg",
        "\0",
        "\u202e",
        "\ud7ff",
        "\U0001f600",
        "e\u0301",
        "a" * 257,
        "sha256:" + "0" * 64,
        "MIT",
        Raw(r'"\ud800"'),
    ),
    *Kind,
    *ROLES,
    *DTYPES,
    *("out", "in", "k", "expert", "halves", "pairs", "com.example"),
    *sorted(FEATURES),
)
OTHERS: tuple[Any, ...] = (None, True, False, [], {}, [[]], [1], [0, 1], {"": 0})
MEMBERS: tuple[tuple[str, Any], ...] = (
    ("groups", 1), ("groups", 2), ("rows", [0]), ("rows", [0, 3]), ("length", 12), ("initial", 1), ("scale", 0.5),
    ("fingerprint", "sha256:" + "1" * 64), ("shape", []), ("layout", []),
    ("segments", {"parts": [{"name": "q", "length": 2, "rope": {"head": 2, "order": "pairs", "rotary": 2}}]}),
    ("segments", {"parts": [{"name": "gate", "length": 2}, {"name": "up", "length": 2}], "interleave": 2}),
    ("requires", {}), ("requires", {"read": [], "write": ["a"]}), ("requires", {"read": sorted(FEATURES)}),
    ("gate", {"tokens": [2, 1]}), ("base", {}), ("base", {"view": {"scheme": "nf4"}, "license": "MIT"}),
    ("info", {"license": "MIT OR Apache-2.0", "authors": ["a"], "tags": []}), ("origin", {"config": {"r": 1.0}}),
    ("extensions", {"com.example": {}}), ("tokenizer", {"added": [{"id": 1, "text": "<x>"}]}),
    ("lineage", {"operation": "combine", "parents": [{"content": "sha256:" + "2" * 64}]}),
    ("training", {"tool": "t", "datasets": [{"name": "d", "license": "MIT"}]}), ("unknown", {"a": [1, 2.5]}),
)  # fmt: skip


@dataclass(slots=True)
class Parts:
    """A file taken apart: the header without its string map, the document, and the data of each tensor."""

    header: dict[str, Any]
    document: Any
    data: dict[str, bytes]
    metadata: dict[str, Any] = field(default_factory=dict)


def split(file: bytes) -> Parts | None:
    """Take a file apart; None where it has no header with a document in it."""
    try:
        length = int.from_bytes(file[:8], "little")
        header = json.loads(file[8 : 8 + length])
        metadata = header.pop("__metadata__")
        document = json.loads(metadata.pop("loreg"))
        body = file[8 + length :]
        data = {key: body[slice(*record["data_offsets"])] for key, record in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
        return None
    return Parts(header, document, data, metadata)


def joined(parts: Parts, random: Random, *, oddity: float = 0.0) -> bytes:
    """Put a file together, in the order in which the data stands in ``parts``.

    Args:
        parts: what it is made of; offsets are written as the records state them.
        random: source of every choice.
        oddity: how often to choose another spelling than the plain one, 0 to 1.
    """
    metadata = parts.metadata | {"loreg": spelled(parts.document, random, oddity)}
    header = spelled(shuffled(parts.header | {"__metadata__": metadata}, random), random, oddity).encode(
        "utf-8", "surrogatepass"
    )
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + b"".join(parts.data.values())


def respelled(file: bytes, random: Random) -> bytes:
    """The same adapter in another spelling: other order of everything that has none, escapes, white space."""
    parts = split(file)
    assert parts is not None
    order = list(parts.data)
    random.shuffle(order)
    parts = Parts(parts.header, reordered(parts.document, random), {key: parts.data[key] for key in order})
    placed(parts)
    return joined(parts, random, oddity=0.3)


def mutated(file: bytes, random: Random) -> bytes:
    """A file that differs from ``file`` in a few places, mostly in what it says."""
    parts = split(file)
    if parts is None or random.random() < 0.05:
        return scrambled(file, random)
    for _ in range(random.choice((1, 1, 1, 2, 2, 4))):
        root = {"document": parts.document} if random.random() < 0.75 else {"header": parts.header}
        change(root, random)
        parts.document = root.get("document", parts.document)
        header = root.get("header", parts.header)
        parts.header = header if isinstance(header, dict) else parts.header
    if random.random() < 0.02:
        parts.metadata = {random.choice(("format", "LOREG", "")): random.choice(("pt", 1, None))}
    if random.random() < 0.1:
        change_data(parts, random)
    if random.random() < 0.8:
        fitted(parts)
    if random.random() < 0.8:
        stated(parts)
    if random.random() < 0.1:  # behind the repairs, so that what they repair is changed, too
        change({"header": parts.header}, random)
    return joined(parts, random, oddity=random.choice((0.0, 0.0, 0.02, 0.2)))


def scrambled(file: bytes, random: Random) -> bytes:
    """A byte changed, a piece taken out, or a piece put in twice."""
    begin, end = sorted(random.randrange(len(file) + 1) for _ in range(2))
    kept = (file[:begin], file[begin:end], file[end:])
    return random.choice((
        kept[0] + kept[2],
        kept[0] + kept[1] * 2 + kept[2],
        kept[0] + bytes([random.randrange(256)]) + kept[2],
        file[:begin],
        file[:begin] + random.randbytes(4) + file[begin + 4 :],
    ))  # fmt: skip


def change(root: dict[str, Any], random: Random) -> None:
    """Change one thing somewhere in a tree of JSON values, in place."""
    slots = list(walk(root))
    slot = random.choice(slots)
    CHANGES[random.choices(range(len(CHANGES)), WEIGHTS)[0]](slot, slots, random)


def walk(value: Any) -> list[Slot]:
    """Every place in a tree."""
    found: list[Slot] = []
    pending = [value]
    while pending:
        container = pending.pop()
        keys = container if isinstance(container, dict) else range(len(container))
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                pending.append(container[key])
    return found


def replace_value(slot: Slot, slots: list[Slot], random: Random) -> None:
    container, key = slot
    container[key] = deepcopy(random.choice(random.choice((NUMBERS, WORDS, OTHERS))))


def nudge(slot: Slot, slots: list[Slot], random: Random) -> None:
    """Change a value into one of the same type."""
    container, key = slot
    match container[key]:
        case bool() | None:
            container[key] = random.choice((True, False, None))
        case int() | float() as number:
            container[key] = random.choice((number + 1, number - 1, -number, number * 2, *NUMBERS))
        case str() as text:
            at = random.randrange(len(text) + 1)
            container[key] = random.choice((text[:at], text[:at] + "x" + text[at:], random.choice(WORDS)))
        case list() as items:
            container[key] = random.choice((items[:-1], items * 2, items[::-1], [*items, *items[-1:]], [items]))
        case dict() as members:
            container[key] = {name: members[name] for name in members if random.random() < 0.7}


def remove(slot: Slot, slots: list[Slot], random: Random) -> None:
    container, key = slot
    del container[key]


def copy_value(slot: Slot, slots: list[Slot], random: Random) -> None:
    """Put what stands in one place into another."""
    other, key = random.choice(slots)
    slot[0][slot[1]] = deepcopy(other[key])


def copy_member(slot: Slot, slots: list[Slot], random: Random) -> None:
    """Put a member of one object into another, under its name."""
    objects = [(container, key) for container, key in slots if isinstance(container, dict)]
    (source, key), (goal, _) = random.choice(objects), random.choice(objects)
    goal[key] = deepcopy(source[key])


def add_member(slot: Slot, slots: list[Slot], random: Random) -> None:
    container = slot[0]
    name, value = random.choice(MEMBERS)
    if isinstance(container, dict):
        container[name] = deepcopy(value)
    else:
        container.append(deepcopy(value))


def rename(slot: Slot, slots: list[Slot], random: Random) -> None:
    container, key = slot
    if isinstance(container, dict):
        name = random.choice((key + "x", key[1:], key + "/A", *(str(word) for word in WORDS)))
        container[name] = container.pop(key)


def nest(slot: Slot, slots: list[Slot], random: Random) -> None:
    container, key = slot
    for _ in range(random.choice((1, 2, 31, 33))):
        container[key] = random.choice(([container[key]], {"a": container[key]}))


def change_kind(slot: Slot, slots: list[Slot], random: Random) -> None:
    """Give a target another kind together with a layout of it."""
    records = [container for container, key in slots if key == "kind" and isinstance(container, dict)]
    if records:
        record = random.choice(records)
        record["kind"] = random.choice(list(Kind))
        record["layout"] = list(random.choice(sorted(LAYOUTS[record["kind"]])))


CHANGES: tuple[Callable[[Slot, list[Slot], Random], None], ...] = (
    replace_value, nudge, remove, copy_value, copy_member, add_member, rename, nest, change_kind,
)  # fmt: skip
WEIGHTS = (3, 6, 2, 2, 2, 4, 1, 0.3, 1)


def change_data(parts: Parts, random: Random) -> None:
    """Change one element of a tensor, as if the elements had eight bytes."""
    if parts.data:
        key = random.choice(list(parts.data))
        data = parts.data[key]
        at = random.randrange(len(data) // 8 + 1) * 8
        element = random.choice((0, 1, 2, -1, 1 << 40, 1 << 62, -(1 << 63)))
        parts.data[key] = (data[:at] + element.to_bytes(8, "little", signed=True) + data[at + 8 :])[: len(data)]


def fitted(parts: Parts) -> None:
    """Give every tensor as many bytes as its record asks for, and the offsets to them."""
    for key, record in parts.header.items():
        size = size_of(record)
        if size is None:
            return
        parts.data[key] = parts.data.get(key, b"").ljust(size, b"\1")[:size]
    parts.data = {key: data for key, data in parts.data.items() if key in parts.header}
    placed(parts)


def size_of(record: Any) -> int | None:
    """Bytes that a tensor record asks for; None where it makes no sense, or asks for too many."""
    if (
        not isinstance(record, dict)
        or str(record.get("dtype")) not in DTYPES
        or not isinstance(record.get("shape"), list)
    ):
        return None
    if not all(isinstance(length, int) for length in record["shape"]):
        return None
    size = prod(record["shape"]) * DTYPES[str(record["dtype"])].size
    return size if 0 <= size <= DATA_LIMIT else None


def placed(parts: Parts) -> None:
    """Write the offsets that the order of the data gives."""
    position = 0
    for key, data in parts.data.items():
        parts.header[key]["data_offsets"] = [position, position + len(data)]
        position += len(data)


def stated(parts: Parts) -> None:
    """State the digest of every tensor that a target names."""
    targets = parts.document.get("targets") if isinstance(parts.document, dict) else None
    for name, target in targets.items() if isinstance(targets, dict) else ():
        roles = target.get("tensors") if isinstance(target, dict) else None
        for role, digest in roles.items() if isinstance(roles, dict) else ():
            data = parts.data.get(f"{name}/{role}")
            if data is not None and isinstance(digest, str) and digest.startswith("sha256:"):
                roles[role] = f"sha256:{sha256(data).hexdigest()}"


def shuffled(record: dict[str, Any], random: Random) -> dict[str, Any]:
    """The same members in another order."""
    items = list(record.items())
    random.shuffle(items)
    return dict(items)


def reordered(value: Any, random: Random) -> Any:
    """The same value with the members of every object in another order."""
    match value:
        case dict():
            return shuffled({name: reordered(item, random) for name, item in value.items()}, random)
        case list():
            return [reordered(item, random) for item in value]
    return value


def spelled(value: Any, random: Random, oddity: float) -> str:
    """JSON text of ``value``, with escapes, white space and spellings of numbers that mean the same."""

    def odd() -> bool:
        return oddity > 0 and random.random() < oddity

    def gap() -> str:
        return random.choice((" ", "\n", "\t", "\r\n  ")) if odd() else ""

    def text(string: str) -> str:
        if not odd():
            return json.dumps(string, ensure_ascii=False)
        return f'"{"".join(map(letter, string))}"'

    def letter(character: str) -> str:
        plain = json.dumps(character, ensure_ascii=odd())[1:-1]
        return f"\\u{ord(character):04X}" if character < "\ud800" and odd() else plain

    def write(item: Any) -> str:
        match item:
            case Raw():
                return str(item)
            case str():
                return text(item)
            case float() if odd():
                return random.choice((f"{item!r}", f"{item:.17e}", f"{item:.17E}"))
            case list():
                return f"[{gap()}{','.join(f'{gap()}{write(inner)}{gap()}' for inner in item)}]"
            case dict():
                members = (f"{gap()}{text(name)}{gap()}:{gap()}{write(inner)}" for name, inner in item.items())
                return f"{{{','.join(members)}{gap()}}}"
        return json.dumps(item)

    return write(value)
