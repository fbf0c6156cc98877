"""The segments of a fused tensor as the JSON record that a document has of them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from lora_registry.adapter import Json
from lora_registry.segments import Rope, RopeOrder, Segment, Segments


def to_record(segments: Segments) -> dict[str, Json]:
    """The JSON record of ``segments``; what has its default is left out."""
    parts: list[Json] = []
    for part in segments.parts:
        record: dict[str, Json] = {"name": part.name, "length": part.length}
        if part.rope is not None:
            record["rope"] = _rope_record(part.rope)
        parts.append(record)
    return {"parts": parts} | ({"interleave": segments.interleave} if segments.interleave != 1 else {})


def _rope_record(rope: Rope) -> dict[str, Json]:
    record: dict[str, Json] = {"head": rope.head, "order": rope.order}
    return record if rope.rotary == rope.head else record | {"rotary": rope.rotary}


def from_record(record: Mapping[str, Json]) -> Segments:
    """The segments of a record that breaks no rule (:mod:`~lora_registry.format.segment_rules`)."""
    parts = cast("list[Mapping[str, Json]]", record["parts"])
    return Segments(tuple(map(_from_part, parts)), cast("int", record.get("interleave", 1)))


def _from_part(part: Mapping[str, Json]) -> Segment:
    rope = cast("Mapping[str, Json] | None", part.get("rope"))
    return Segment(cast("str", part["name"]), cast("int", part["length"]), None if rope is None else _from_rope(rope))


def _from_rope(rope: Mapping[str, Json]) -> Rope:
    head = cast("int", rope["head"])
    return Rope(head, cast("RopeOrder", rope["order"]), cast("int", rope.get("rotary", head)))
