"""The files of just under a mebibyte that ask most of a reader, made by hand: coverage leads no fuzzer there.

    python tests/fuzz/worst_cases.py

prints what each of them costs. ``test_worst_cases.py`` holds the memory against its bound.
"""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from lora_registry.digest import Digest
from lora_registry.findings import Finding
from lora_registry.format.reader import check_file

MEBI = 1 << 20
SIZE = MEBI - 1024
HOLE = "@"
"""What a template has where as many items go as fit."""

Item = str | Callable[[int], str]

ZERO = str(Digest.of(b"\0"))
BIAS = {"kind": "bias", "layout": ["out"], "shape": [1], "scale": 1, "tensors": {"delta": ZERO}}
ROWS = {"kind": "tokens", "layout": ["in", "out"], "shape": [1, 1], "rows": [0], "tensors": {"value": ZERO}}
DEEP = 30


def record(shape: str, offsets: str, dtype: str = '"U8"') -> str:
    """A tensor record."""
    return f'{{"dtype":{dtype},"shape":[{shape}],"data_offsets":[{offsets}]}}'


def members(value: str) -> Callable[[int], str]:
    """Members of an object under short names, all with this value."""
    return lambda number: f'"{number:x}":{value}'


def holes(number: int) -> str:
    """Tensors of one byte, each with a byte before it that belongs to none."""
    return f'"{number:x}":{record("1", f"{2 * number},{2 * number + 1}")}'


HEADERS: dict[str, tuple[str, Item]] = {
    "empty lists": ('{"t":[@]}', "[]"),
    "lists as deep as allowed": ('{"t":[@]}', "[" * DEEP + "]" * DEEP),
    "objects as deep as allowed": ('{"t":[@]}', '{"":' * DEEP + "0" + "}" * DEEP),
    "integers": ('{"t":[@]}', "9"),
    "floats": ('{"t":[@]}', "1e1"),
    "floats of 760 digits": ('{"t":[@]}', "0." + "3" * 760),
    "one key many times": ("{@}", '"t":0'),
    "the last key twice": ('{@,"0":0}', members("0")),
    "members that are no tensors": ("{@}", members("{}")),
    "unknown element types": ("{@}", members(record("", "0,0", '""'))),
    "a list as element type": (f'{{"t":{record("", "0,0", "[@]")}}}', "[]"),
    "the longest axes": ("{@}", members(record(",".join(["1099511627776"] * 8), "0,0"))),
    "empty tensors": ("{@}", members(record("0", "0,0"))),
    "a hole before each tensor": ("{@}", holes),
    "a string map of many keys": ('{"__metadata__":{"loreg":"{}",@}}', members('""')),
    "tensors that no target takes": (
        r'{"__metadata__":{"loreg":"{\"loreg\":1,\"targets\":{}}"},@}',
        members(record("0", "0,0")),
    ),
}
"""Name to a template of the header, and what fills it."""

STRINGS: dict[str, tuple[str, str]] = {
    "lists too deep": ('{"t":@', "["),
    "an integer of a million digits": ('{"t":@}', "9"),
    "a float of a million digits": ('{"t":0.@}', "9"),
    "an exponent of a million digits": ('{"t":1e-@}', "9"),
    "a string of escapes": ('{"t":"@"}', r"\u0001"),
    "a string of surrogate pairs": ('{"t":"@"}', r"\ud83d\ude00"),
    "a string of halves of pairs": ('{"t":"@"}', r"\ud83d"),
    "a string of four-byte letters": ('{"t":"@"}', "\U0001f600"),
    "white space": ("{@}", "\n"),
}
"""Name to a template of the header, and what is repeated in it without commas."""

DOCUMENTS: dict[str, tuple[dict[str, Any], Item]] = {
    "a list as the version": ({"loreg": [HOLE]}, "1e1"),
    "unknown fields": ({"unknown": [HOLE]}, "[]"),
    "targets that are no objects": ({"targets": {HOLE: 0}}, members("0")),
    "targets of a kind and nothing else": ({"targets": {HOLE: 0}}, members('{"kind":"linear"}')),
    "extensions": ({"extensions": {HOLE: 0}}, members("0")),
    "required features": ({"requires": {"read": [HOLE]}}, '"x"'),
    "members of requires": ({"requires": {HOLE: 0}}, members("0")),
    "a gate": ({"gate": {"tokens": [HOLE]}}, "1"),
    "added tokens": ({"tokenizer": {"added": [HOLE]}}, "0"),
    "parents": ({"lineage": {"operation": "x", "parents": [HOLE]}}, "{}"),
    "data sets": ({"training": {"datasets": [HOLE]}}, "{}"),
    **{
        f"a list as {field}": ({"targets": {"t": {**ROWS, field: [HOLE]}}}, "[]")
        for field in (
            "kind",
            "layout",
            "shape",
            "scale",
            "rows",
            "length",
            "groups",
            "initial",
            "fingerprint",
            "tensors",
        )
    },
    "many roles": ({"targets": {"t": {**BIAS, "tensors": {HOLE: 0}}}}, members("0")),
    "many roles under the longest name": ({"targets": {"n" * 250: {**BIAS, "tensors": {HOLE: 0}}}}, members("0")),
    "many roles under a longer name": ({"targets": {"n" * 2048: {**BIAS, "tensors": {HOLE: 0}}}}, members("0")),
    "many segments": ({"targets": {"t": {**BIAS, "segments": {"parts": [HOLE]}}}}, "0"),
    "many segments under the longest name": ({"targets": {"n" * 250: {**BIAS, "segments": {"parts": [HOLE]}}}}, "0"),
    "a length of 2**40": ({"targets": {"t": {**ROWS, "length": 1 << 40}}}, ""),
}
"""Name to the members of the document, and what fills it."""


def filled(template: str, item: Item, size: int, width: Callable[[str], int] = len) -> str:
    """A template with as many items as fit in the place of the hole.

    Args:
        template: text with a hole.
        item: what to fill it with, or a function from its number to it.
        size: width of the result at most.
        width: what a piece of the text counts for.
    """
    parts: list[str] = []
    left = size - width(template)
    for number in count():
        part = item if isinstance(item, str) else item(number)
        left -= width(part) + 1
        if left < 0 or not part:
            break
        parts.append(part)
    return template.replace(HOLE, ",".join(parts))


def width_in_string(text: str) -> int:
    """Characters that a text takes inside of a JSON string, where a quote takes two."""
    return len(json.dumps(text)) - 2


def framed(header: str, data: bytes = b"") -> bytes:
    """The file with this header."""
    text = header.encode()
    return len(text).to_bytes(8, "little") + text + data


def native(members: dict[str, Any], item: Item) -> bytes:
    """The file whose document has these members, with the tensor of its first target."""
    template = json.dumps({"loreg": 1, **members}).replace(f'"{HOLE}": 0', HOLE).replace(f'"{HOLE}"', HOLE)
    header: dict[str, Any] = {}
    for name, target in members.get("targets", {}).items():
        if isinstance(target, dict) and len(name) <= 250:
            role, dtype, shape = ("delta", "F8_E4M3", [1]) if target["kind"] == "bias" else ("value", "U8", [1, 1])
            header[f"{name}/{role}"] = {"dtype": dtype, "shape": shape, "data_offsets": [0, 1]}
    room = SIZE - len(json.dumps(header)) - 32
    data = b"\0" * len(header)
    header["__metadata__"] = {"loreg": filled(template, item, room, width_in_string)}
    return framed(json.dumps(header), data)


def header_case(template: str, item: Item) -> bytes:
    """The file whose header is filled with items."""
    return framed(filled(template, item, SIZE))


def string_case(template: str, letter: str) -> bytes:
    """The file whose header is one long thing."""
    return framed(template.replace(HOLE, letter * (SIZE // len(letter.encode()))))


CASES: dict[str, Callable[[], bytes]] = {
    **{f"header: {name}": partial(header_case, *case) for name, case in HEADERS.items()},
    **{f"header: {name}": partial(string_case, *case) for name, case in STRINGS.items()},
    **{f"document: {name}": partial(native, *case) for name, case in DOCUMENTS.items()},
}
"""Name to what makes the file."""


def memory_of(path: Path) -> tuple[list[Finding], int]:
    """Findings of a file, and the bytes of memory that finding them takes."""
    tracemalloc.start()
    try:
        return check_file(path), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def seconds_of(path: Path) -> float:
    """Processor time that checking a file takes."""
    started = time.process_time()
    check_file(path)
    return time.process_time() - started


def main() -> None:
    """Print a table, the most expensive first."""
    rows: list[tuple[float, float, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.loreg.safetensors"
        for name, make in CASES.items():
            path.write_bytes(make())
            seconds = seconds_of(path)
            findings, memory = memory_of(path)
            rules = ",".join(sorted({finding.rule for finding in findings}))
            rows.append((memory / MEBI, seconds, f"{len(findings):7,d} findings {rules:18} {name}"))
    for memory, seconds, text in sorted(rows, reverse=True):
        print(f"{memory:6.1f} MiB {seconds:6.3f} s {text}")


if __name__ == "__main__":
    main()
