"""Derives ``document.schema.json`` from the tables of the rules; ``--check`` compares instead of writing.

A schema says what stands where, and nothing of the tensors beside the document: ``README.md`` lists what it
cannot say.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from lora_registry.adapter import LAYOUTS, LOW_RANK, SCALED, Kind
from lora_registry.format.features import GATE, KIND_FEATURES
from lora_registry.format.limits import AXES, AXIS_LENGTH, NAME_BYTES
from lora_registry.format.rules import FORMAT_MAJOR, KEY
from lora_registry.format.target_rules import OPTIONAL, REQUIRED, SEGMENTED

Schema = dict[str, Any]

PATH = Path(__file__).with_name("document.schema.json")
STRING: Schema = {"type": "string"}
OBJECT: Schema = {"type": "object"}
DIGEST: Schema = {"$ref": "#/$defs/digest"}
ONE_LINE: Schema = {"not": {"pattern": "\n"}}
"""Beside a pattern: in some engines $ lets a line feed pass."""


def strings(*names: str) -> Schema:
    """Fields that are strings where they are present."""
    return dict.fromkeys(names, STRING)


def integer(least: int, most: int | None = None) -> Schema:
    """An integer within bounds."""
    return {"type": "integer", "minimum": least} | ({} if most is None else {"maximum": most})


def record(required: list[str], fields: Schema, *, closed: bool = False) -> Schema:
    """An object with these fields; others are allowed unless it is closed."""
    made: Schema = {"type": "object", "properties": fields}
    if required:
        made["required"] = required
    return made | ({"additionalProperties": False} if closed else {})


def array(items: Schema, **bounds: Any) -> Schema:
    """A list of ``items``."""
    return {"type": "array", "items": items, **bounds}


DEFINITIONS: Schema = {
    "digest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$", **ONE_LINE},
    "length": integer(1, AXIS_LENGTH),
    "features": array({"type": "string", "pattern": "^[a-z0-9.-]{1,100}$", **ONE_LINE}, uniqueItems=True),
    "segments": record(
        ["parts"],
        {
            "interleave": integer(1),
            "parts": array(
                record(
                    ["name", "length"],
                    {
                        "name": {"type": "string", "minLength": 1},
                        "length": integer(1),
                        "rope": record(
                            ["head", "order"],
                            {"head": integer(1), "order": {"enum": ["halves", "pairs"]}, "rotary": integer(2)},
                            closed=True,
                        ),
                    },
                    closed=True,
                ),
                minItems=1,
            ),
        },
        closed=True,
    ),
}


def roles(kind: Kind) -> Schema:
    """R-026 and R-034: the roles of a kind, one branch for each way of writing it."""
    ways = [
        record(sorted(required), dict.fromkeys(sorted(required | OPTIONAL.get(kind, frozenset())), DIGEST), closed=True)
        for required in REQUIRED[kind]
    ]
    return ways[0] if len(ways) == 1 else {"oneOf": ways}


def shapes(kind: Kind) -> Schema:
    """R-023 and R-024: each layout of a kind with as many lengths."""
    lengths = {"$ref": "#/$defs/length"}
    if () in LAYOUTS[kind]:
        return {"properties": {"layout": {"const": []}, "shape": array(lengths, maxItems=AXES)}, "required": ["shape"]}
    needed = ["layout"] if kind is Kind.TOKENS else ["layout", "shape"]
    return {
        "required": needed,
        "anyOf": [
            {
                "properties": {
                    "layout": {"const": list(layout)},
                    "shape": array(lengths, minItems=len(layout), maxItems=len(layout)),
                }
            }
            for layout in sorted(LAYOUTS[kind])
        ],
    }


def target(kind: Kind) -> Schema:
    """R-022 to R-026, R-032 to R-034, R-036 and R-042 to R-044 for one kind, as far as a schema goes."""
    fields: Schema = {"kind": {"const": kind.value}, "tensors": roles(kind), "fingerprint": DIGEST}
    own: Schema = {
        "scale": ({"type": "number"}, kind in SCALED),
        "groups": (integer(1), kind is Kind.CONV),
        "rows": (array(integer(0), minItems=1, uniqueItems=True), kind is Kind.TOKENS),
        "length": (integer(2, AXIS_LENGTH), kind is Kind.TOKENS),
        "segments": ({"$ref": "#/$defs/segments"}, kind in SEGMENTED),
        "initial": (integer(1), kind in LOW_RANK),
    }
    fields |= {name: schema if belongs else False for name, (schema, belongs) in own.items()}
    required = ["kind", "tensors"]
    required += ["scale"] if kind in SCALED else []
    required += ["rows"] if kind is Kind.TOKENS else []
    made = record(required, fields) | {"allOf": [shapes(kind)]}
    return made | ({"dependentRequired": {"length": ["shape"]}} if kind is Kind.TOKENS else {})


def needed(feature: str) -> Schema:
    """R-017: the feature is named."""
    named = {"contains": {"const": feature}}
    return {"required": ["requires"], "properties": {"requires": {"required": ["read"], "properties": {"read": named}}}}


def requirements() -> list[Schema]:
    """R-017 for the gate, and for each kind that needs a feature."""
    made: list[Schema] = [{"if": {"required": ["gate"]}, "then": needed(GATE)}]
    for kind, feature in KIND_FEATURES.items():
        other = {"not": {"properties": {"kind": {"const": kind.value}}, "required": ["kind"]}}
        none_of_it = {"properties": {"targets": {"additionalProperties": other}}}
        made.append({"if": none_of_it, "else": needed(feature)})
    return made


def document() -> Schema:
    """The schema of the document."""
    definitions = DEFINITIONS | {kind.value: target(kind) for kind in Kind}
    by_kind = [{"$ref": f"#/$defs/{kind.value}"} for kind in Kind]
    name = {"pattern": f"^[!-~]{{1,{NAME_BYTES}}}$", **ONE_LINE}
    dataset = record(["name"], strings("name", "revision", "license"))
    view = record(["scheme"], strings("scheme"))
    fields: Schema = {
        KEY: {"const": FORMAT_MAJOR},
        "requires": record([], {side: {"$ref": "#/$defs/features"} for side in ("read", "write")}, closed=True),
        "base": record([], strings("name", "revision", "license") | {"view": view}),
        "info": record([], strings("title", "license")),
        "origin": OBJECT,
        "gate": record(["tokens"], {"tokens": array(integer(0), minItems=1)}, closed=True),
        "tokenizer": record(
            [],
            {
                "digest": DIGEST,
                "chat_template": DIGEST,
                "added": array(record(["id", "text"], {"id": integer(0), "text": STRING})),
            },
        ),
        "lineage": record(
            ["operation"],
            {
                "operation": STRING,
                "parameters": OBJECT,
                "parents": array(record(["content"], {"content": DIGEST, "name": STRING})),
            },
        ),
        "training": record([], strings("tool", "version") | {"datasets": array(dataset)}),
        "extensions": {
            "type": "object",
            "propertyNames": {"pattern": r"^[a-z0-9-]+(\.[a-z0-9-]+)+$", **ONE_LINE},
            "additionalProperties": OBJECT,
        },
        "targets": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": name,
            "additionalProperties": {"oneOf": by_kind},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The document of a loreg adapter, format 1.0",
        **record([KEY, "targets"], fields),
        "allOf": requirements(),
        "$defs": definitions,
    }


def main(arguments: list[str]) -> int:
    """Write the schema, or compare it with what is there."""
    text = json.dumps(document(), indent=1, ensure_ascii=False) + "\n"
    if "--check" not in arguments:
        PATH.write_text(text, encoding="utf-8")
        return 0
    return int(PATH.read_text(encoding="utf-8") != text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
