"""The R rules of adapter-format.md 1.0 that are about a document, and about one record of a header.

Every function takes what JSON gave it and answers with rule ids and whether each rule holds.
A rule is judged where what it speaks of is there to be judged: of a shape that is no list of integers R-006 says so,
and R-007 says nothing.
"""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

from strict_json import is_digest

FEATURES = ["gate"]
MAX_HEADER, MAX_TENSORS, MAX_LENGTH = 33_554_432, 65_536, 1_099_511_627_776
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
SIZES = FLOATS | {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}

MATRIX, STACK = [["out", "in"], ["in", "out"]], [["expert", "out", "in"], ["expert", "in", "out"]]
KERNEL = [["out", "in", *["k"] * axes] for axes in (1, 2, 3)]
KINDS: dict[Any, tuple[Any, set[str], set[str]]] = {  # layouts, required roles, optional roles
    "linear": (MATRIX, {"A", "B"}, {"magnitude", "value"}),
    "embedding": (MATRIX[1:], {"A", "B"}, {"magnitude", "value"}),
    "conv": (KERNEL, {"A", "B"}, {"magnitude", "value"}),
    "experts": (STACK, {"A", "B"}, {"value"}),
    "bias": ([["out"]], {"delta"}, set()),
    "full": ([[]], {"value"}, set()),
    "tokens": (MATRIX[1:], {"value"}, set()),
}
REGISTERED_KINDS = ["loha", "lokr", "sparse"]  # each needs the feature of its name, and this reader has none of them
SCALED = ["linear", "embedding", "conv", "experts", "bias"]
FIELDS_OF_KINDS = {  # the rule that a field breaks in a target of another kind
    "R-032": ("groups", ["conv"]),
    "R-033": ("rows", ["tokens"]),
    "R-042": ("segments", ["linear", "experts", "bias"]),
    "R-043": ("initial", ["linear", "embedding", "conv", "experts"]),
    "R-044": ("length", ["tokens"]),
}


class Only(dict[str, Any]):
    """The pattern of an object that has no other members."""


def fits(value: Any, pattern: Any) -> bool:
    """Whether a value has the form of a pattern: a type, a test, [items], or {"member": form, "optional?": form}."""
    if isinstance(pattern, dict):
        forms = {name.removesuffix("?"): form for name, form in pattern.items()}
        return (
            isinstance(value, dict)
            and all(f"{name}?" in pattern or name in value for name in forms)
            and all(fits(value[name], form) for name, form in forms.items() if name in value)
            and not (isinstance(pattern, Only) and set(value) - set(forms))
        )
    if isinstance(pattern, list):
        return isinstance(value, list) and all(fits(item, pattern[0]) for item in value)
    return isinstance(value, pattern) if isinstance(pattern, type) else bool(pattern(value))


def is_name(value: str) -> bool:
    """Whether it is 1 to 256 characters of visible ASCII."""
    return re.fullmatch("[!-~]{1,256}", value) is not None


def is_int(value: Any, low: int = 0, high: float = math.inf) -> bool:
    """Whether it is an integer within bounds; JSON's true is none."""
    return type(value) is int and low <= value <= high


def is_number(value: Any) -> bool:
    """Whether it is a number; strict JSON has finite ones only."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_shape(value: Any, low: int) -> bool:
    """Whether it is a list of at most 8 lengths."""
    return isinstance(value, list) and len(value) <= 8 and all(is_int(length, low, MAX_LENGTH) for length in value)


def is_map(value: Any) -> bool:
    """Whether it is a map from strings to strings."""
    return isinstance(value, dict) and fits(list(value.values()), [str])


def is_ascending(value: Any, item: Any) -> bool:
    """Whether it is a list of such items, ascending and distinct."""
    return fits(value, [item]) and value == sorted(set(value))


def is_feature_list(value: Any) -> bool:
    """Whether it is a list of features as R-014 has it."""
    return is_ascending(value, lambda name: isinstance(name, str) and re.fullmatch("[a-z0-9.-]{1,100}", name))


def is_extensions(value: Any) -> bool:
    """Whether it is an object of objects under reverse-DNS names (R-016)."""
    name = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
    return isinstance(value, dict) and all(name.fullmatch(key) and fits(value[key], {}) for key in value)


POSITIVE, DATASET = partial(is_int, low=1), {"name": str, "revision?": str, "license?": str}
ROPE = Only({"head": POSITIVE, "order": ["halves", "pairs"].__contains__, "rotary?": partial(is_int, low=2)})
PART = Only({"name": lambda name: isinstance(name, str) and name, "length": POSITIVE, "rope?": ROPE})
SEGMENTS = Only({"parts": [PART], "interleave?": POSITIVE})
DOCUMENT = {
    "R-014": {"requires?": Only({"read?": is_feature_list, "write?": is_feature_list})},
    "R-016": {"extensions?": is_extensions},
    "R-018": {"gate?": Only({"tokens": lambda tokens: fits(tokens, [is_int]) and tokens != []})},
    "R-019": {
        "tokenizer?": {"digest?": is_digest, "chat_template?": is_digest, "added?": [{"id": is_int, "text": str}]}
    },
    "R-020": {"targets": lambda targets: fits(targets, {}) and targets != {}},
    "R-037": {
        "base?": {"name?": str, "revision?": str, "license?": str},
        "info?": {"title?": str, "license?": str},
        "origin?": {},
    },
    "R-039": {"lineage?": {"operation": str, "parameters?": {}, "parents?": [{"content": is_digest, "name?": str}]}},
    "R-040": {"training?": {"tool?": str, "version?": str, "datasets?": [DATASET]}},
    "R-041": {"base?": lambda base: fits(base, {"view?": {"scheme": str}}) or not fits(base, {})},
}


def segments_hold(segments: Any, out: int) -> bool:
    """Whether R-042 holds of the segments of a tensor with so many outputs."""
    if not fits(segments, SEGMENTS):
        return False
    parts, blocks = segments["parts"], segments.get("interleave", 1)
    ropes = [(part["length"], part["rope"]) for part in parts if "rope" in part]
    return (
        sum(part["length"] for part in parts) == out
        and len({part["name"] for part in parts}) == len(parts)
        and all(part["length"] % blocks == 0 for part in parts)
        and all(length % rope["head"] == 0 for length, rope in ropes)
        and all(rope.get("rotary", rope["head"]) in range(0, rope["head"] + 1, 2) for _, rope in ropes)
    )


def field_rules(target: dict[str, Any], records: dict[str, Any]) -> dict[str, bool]:
    """Rules about single fields of a target of a known kind; `records` are those of its tensors, by role."""
    kind, tensors = target["kind"], target.get("tensors")
    layouts, required, optional = KINDS[kind]
    layout = target.get("layout", [])
    shape: Any = target.get("shape", [1, 1] if kind == "tokens" else None)
    axes = [len(layout)] if layout and layout in layouts else range(9)
    return {
        "R-023": layout in layouts,
        "R-024": is_shape(shape, 1) and len(shape) in axes,
        "R-025": is_number(target.get("scale")) if kind in SCALED else "scale" not in target,
        "R-026": isinstance(tensors, dict) and required <= set(tensors) <= required | optional,
        "R-028": kind in ("full", "tokens") or all(record["dtype"] in FLOATS for record in records.values()),
        "R-034": not isinstance(tensors, dict) or all(map(is_digest, tensors.values())),
        "R-036": fits(target, {"fingerprint?": is_digest}),
    }


def shape_rules(target: dict[str, Any], shapes: dict[str, list[int]]) -> dict[str, bool]:
    """Rules that hold fields of a target against each other; `shapes` are those of its tensors, by role."""
    kind, shape = target["kind"], target["shape"]
    axes = dict(zip(target.get("layout", []), shape, strict=False))
    out, groups = axes.get("out", 0), target.get("groups", 1) if kind == "conv" else 1
    stack, kernel = shape[:1] if kind == "experts" else [], shape[2:] if kind == "conv" else []
    ranks = shapes.get("A", [])[len(stack) :][:1]  # r, where A says it
    rules = {
        "R-029": "A" not in shapes or ranks != [],
        "R-030": shapes.get("magnitude", [out]) == [out],
        "R-031": all(shapes.get(role, shape) == shape for role in ("delta", "value")),
        "R-032": is_int(groups, 1) and all(length % groups == 0 for length in [out, *ranks]),
        "R-042": "segments" not in target or segments_hold(target["segments"], out),
        "R-043": "initial" not in target or is_int(target["initial"], 1, ranks[0] - 1 if ranks else math.inf),
    }
    for r in ranks if rules["R-032"] else []:
        factors = {
            "A": [*stack, r, groups * axes["in"], *kernel],
            "B": [*stack, out, r // groups, *(1 for _ in kernel)],
        }
        rules["R-029"] = all(shapes.get(role, factors[role]) == factors[role] for role in factors)
    return rules


def token_rules(target: dict[str, Any], shapes: dict[str, list[int]]) -> dict[str, bool]:
    """The same of a tokens target, which is free to have no shape."""
    rows: Any = target.get("rows")
    listed = fits(rows, [is_int]) and rows != []
    size, out = target.get("shape", [None, None])
    value, length = shapes.get("value"), target.get("length", size or math.inf)
    grows = size is not None and is_int(length, size + 1, MAX_LENGTH)
    below = length if grows or "length" not in target else math.inf
    added = {row for row in rows if size <= row < length} if listed and grows else set()
    return {
        "R-031": not listed or value is None or (len(value) == 2 and value[0] == len(rows) and out in (None, value[1])),
        "R-033": listed and is_ascending(rows, is_int) and rows[-1] < below,
        "R-044": "length" not in target or (grows and (not listed or len(added) == length - size)),
    }


def target_rules(name: str, target: Any, records: dict[str, Any]) -> dict[str, bool]:
    """Rules about a target, those that hold fields against each other only where it breaks no other."""
    kind = target.get("kind") if isinstance(target, dict) else None
    if kind in REGISTERED_KINDS:
        return {"R-017": False}
    if not isinstance(kind, str) or kind not in KINDS:
        return {"R-021": is_name(name), "R-022": False}
    rules = field_rules(target, records) | {"R-021": is_name(name)}
    if all(rules.values()):
        shapes = {role: record["shape"] for role, record in records.items()}
        rules |= (token_rules if kind == "tokens" else shape_rules)(target, shapes)
        rules |= {rule: field not in target for rule, (field, kinds) in FIELDS_OF_KINDS.items() if kind not in kinds}
    return rules


def document_rules(document: dict[str, Any]) -> dict[str, bool]:
    """Rules about the top level of a document."""
    rules = {rule: fits(document, pattern) for rule, pattern in DOCUMENT.items()}
    return rules | {"R-017": "gate" not in document or "gate" in features(document)}


def features(document: dict[str, Any]) -> list[Any]:
    """What requires.read names."""
    read: list[Any] = document["requires"]["read"] if fits(document, {"requires": {"read": list}}) else []
    return read


def knows(names: list[Any]) -> bool:
    """Whether every name is a feature of this reader; what is no string is no name."""
    return all(name in FEATURES for name in names if isinstance(name, str))


def record_rules(record: Any) -> dict[str, bool]:
    """R-004 to R-006 of a member of the header, where those that are about its members need them."""
    members = record if isinstance(record, dict) else {}
    rules = {"R-004": set(members) == {"dtype", "shape", "data_offsets"}}
    if "dtype" in members:
        rules["R-005"] = isinstance(members["dtype"], str) and members["dtype"] in SIZES
    if "shape" in members:
        rules["R-006"] = is_shape(members["shape"], 0)
    return rules


def is_span(dtype: str, shape: list[int], data_offsets: Any) -> bool:
    """Whether the offsets of a record span the bytes of its tensor (R-007)."""
    length = math.prod(shape) * SIZES[dtype]
    return fits(data_offsets, [is_int]) and len(data_offsets) == 2 and data_offsets[1] - data_offsets[0] == length
