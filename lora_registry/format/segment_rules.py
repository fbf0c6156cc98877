"""The rule about the segments of a fused tensor, R-042."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import cast

from lora_registry.adapter import Json
from lora_registry.findings import Finding, bounded

_RULE = "R-042"


def check_segments(place: str, record: Json, out: int) -> Iterator[Finding]:
    """Everything that the ``segments`` of a target break.

    Args:
        place: where they stand, for the findings.
        record: the field.
        out: length of the output axis of the base tensor.
    """
    if not isinstance(record, dict) or not {"parts"} <= set(record) <= {"parts", "interleave"}:
        yield Finding(_RULE, place, "is no object with 'parts', and 'interleave' or nothing")
        return
    parts, blocks = record["parts"], record.get("interleave", 1)
    if not isinstance(parts, list) or not parts:
        yield Finding(_RULE, f"{place}/parts", "is no list of segments")
        return
    each = (_part(f"{place}/parts/{index}", part) for index, part in enumerate(parts))
    found = list(bounded(chain.from_iterable(each)))
    if type(blocks) is not int or blocks < 1:
        found.append(Finding(_RULE, f"{place}/interleave", f"{blocks!r} is no number of blocks"))
    yield from found or _together(place, cast("list[Mapping[str, Json]]", parts), cast("int", blocks), out)


def _together(place: str, parts: list[Mapping[str, Json]], blocks: int, out: int) -> Iterator[Finding]:
    names = [part["name"] for part in parts]
    lengths = [cast("int", part["length"]) for part in parts]
    if len(set(names)) != len(names):
        yield Finding(_RULE, f"{place}/parts", "two segments have one name")
    if sum(lengths) != out:
        yield Finding(_RULE, f"{place}/parts", f"the segments have {sum(lengths)} outputs, the tensor {out}")
    if any(length % blocks for length in lengths):
        yield Finding(_RULE, f"{place}/interleave", f"{blocks} blocks do not divide every segment")


def _part(place: str, part: Json) -> Iterator[Finding]:
    if not isinstance(part, dict) or not {"name", "length"} <= set(part) <= {"name", "length", "rope"}:
        yield Finding(_RULE, place, "is no object with name and length, and 'rope' or nothing")
        return
    length = part["length"]
    if not isinstance(part["name"], str) or not part["name"] or type(length) is not int or length < 1:
        yield Finding(_RULE, place, "has no name, or no positive length")
    elif "rope" in part:
        yield from _rope(f"{place}/rope", part["rope"], length)


def _rope(place: str, rope: Json, length: int) -> Iterator[Finding]:
    if not isinstance(rope, dict) or not {"head", "order"} <= set(rope) <= {"head", "order", "rotary"}:
        yield Finding(_RULE, place, "is no object with head and order, and 'rotary' or nothing")
        return
    head, rotary = rope["head"], rope.get("rotary", rope["head"])
    if type(head) is not int or head < 1 or length % head:
        yield Finding(_RULE, f"{place}/head", f"{head!r} rows a head do not divide {length}")
    elif type(rotary) is not int or not 0 < rotary <= head or rotary % 2:
        yield Finding(_RULE, f"{place}/rotary", f"{rotary!r} is no even number of rows of a head of {head}")
    if rope["order"] not in ("halves", "pairs"):
        yield Finding(_RULE, f"{place}/order", f"{rope['order']!r} is neither 'halves' nor 'pairs'")
