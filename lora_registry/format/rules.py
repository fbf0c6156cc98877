"""Every rule of the format that a program can check, each with its id in ``spec/adapter-format.md``.

The functions are pure: they take the parsed document and the list of tensors, do no input or output, and
return everything they find. Readers, writers and validators call the same ones, so that what is written is
what can be read. R-001 to R-010, the framing, are checked where the bytes are, in ``container``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from lora_registry.adapter import LAYOUTS, LOW_RANK, SCALED, Json, Kind
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.findings import Finding
from lora_registry.format.canonical import is_integers
from lora_registry.format.limits import AXES, AXIS_LENGTH, NAME_BYTES

FORMAT_MAJOR = 1
KEY = "loreg"
"""Name of the one metadata entry, and of the format's version inside it."""

FEATURES: frozenset[str] = frozenset()
"""What ``requires.read`` may name for this reader. Everything in major 1 needs none."""

WRITE_FEATURES: frozenset[str] = frozenset()
"""What ``requires.write`` may name for this editor."""

Spec: TypeAlias = tuple[str, tuple[int, ...]]
"""dtype and shape of a tensor."""

RULES: Mapping[str, str] = {
    "R-001": "the file is long enough for its header, and the header is within the limit",
    "R-002": "the header is strict JSON and begins with '{'",
    "R-003": "the data section ends where the last tensor ends",
    "R-004": "the header holds tensor records and one string map, nothing else",
    "R-005": "dtypes are known",
    "R-006": "shapes are lists of lengths within the limits",
    "R-007": "a tensor's offsets span exactly its bytes",
    "R-008": "tensors neither overlap nor leave holes",
    "R-009": "tensor keys are 1 to 256 printable ASCII characters",
    "R-010": "the number of tensors is within the limit",
    "R-011": "the string map has the one key 'loreg'",
    "R-012": "its value is a strict JSON object",
    "R-013": "the format's major version is 1",
    "R-014": "requirements are sorted lists of names, each once",
    "R-015": "every requirement to read is known to the reader",
    "R-016": "extensions have reverse-DNS names and are objects",
    "R-020": "there is at least one target",
    "R-021": "a target's name is printable ASCII without spaces",
    "R-022": "a target's kind is known",
    "R-023": "a target's layout is one of its kind",
    "R-024": "a target's shape fits its layout",
    "R-025": "the scale is a finite number, and is there exactly where there is a change to scale",
    "R-026": "a target has the tensors of its kind and no others",
    "R-027": "every tensor of the file belongs to a target, and every tensor of a target is in the file",
    "R-028": "factors, magnitudes and deltas are floating point",
    "R-029": "the factors have the shapes of their kind and agree on the rank",
    "R-030": "a magnitude has one element for each output",
    "R-031": "a value or delta has the shape of what it replaces or changes",
    "R-032": "groups divide the rank and the outputs of a conv",
    "R-033": "rows are ascending, each once, and within the base tensor",
    "R-034": "every tensor's digest is stated, as sha256",
    "R-035": "a tensor's bytes have the stated digest",
    "R-036": "a fingerprint is a sha256 digest",
    "R-037": "base, info and origin are objects; names, revisions and licenses are strings",
    "R-038": "no tensor of a native file is empty",
}
"""Rule id to the rule in one line."""

_NAME = re.compile(rf"[!-~]{{1,{NAME_BYTES}}}", re.ASCII)
_EXTENSION = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+", re.ASCII)
_FEATURE = re.compile(r"[a-z0-9.-]{1,100}", re.ASCII)

_REQUIRED = {
    **dict.fromkeys(LOW_RANK, frozenset({"A", "B"})),
    Kind.BIAS: frozenset({"delta"}),
    Kind.FULL: frozenset({"value"}),
    Kind.TOKENS: frozenset({"value"}),
}
_OPTIONAL = {
    Kind.LINEAR: frozenset({"magnitude", "value"}),
    Kind.EMBEDDING: frozenset({"magnitude", "value"}),
    Kind.CONV: frozenset({"magnitude", "value"}),
    Kind.EXPERTS: frozenset({"value"}),
}


def check_document(document: Json, tensors: Mapping[str, Spec]) -> list[Finding]:
    """Everything that the document and the tensors beside it break, R-009 and R-013 to R-038.

    Args:
        document: the parsed JSON of the metadata key.
        tensors: key in the container to dtype and shape.
    """
    if not isinstance(document, dict):
        return [Finding("R-012", KEY, "is no JSON object")]
    if type(document.get(KEY)) is not int or document[KEY] != FORMAT_MAJOR:
        return [Finding("R-013", KEY, f"format version {document.get(KEY)!r}, this reader knows {FORMAT_MAJOR}")]
    return [
        *_requirements(document),
        *_descriptions(document),
        *_extensions(document.get("extensions", {})),
        *_keys(tensors),
        *_targets(document.get("targets"), tensors),
    ]


def _requirements(document: Mapping[str, Json]) -> Iterator[Finding]:
    requires = document.get("requires", {})
    if not isinstance(requires, dict) or not set(requires) <= {"read", "write"}:
        yield Finding("R-014", "requires", "is no object with 'read' and 'write'")
        return
    for side, names in requires.items():
        if not isinstance(names, list) or not all(isinstance(name, str) and _FEATURE.fullmatch(name) for name in names):
            yield Finding("R-014", f"requires/{side}", "is no list of feature names")
        elif [str(name) for name in names] != sorted({str(name) for name in names}):
            yield Finding("R-014", f"requires/{side}", "is not sorted, or names something twice")
        elif side == "read":
            for name in names:
                if name not in FEATURES:
                    yield Finding("R-015", "requires/read", f"needs {name!r}, which this reader does not know")


def _descriptions(document: Mapping[str, Json]) -> Iterator[Finding]:
    texts = {"base": ("name", "revision", "license"), "info": ("title", "license"), "origin": ()}
    for part, names in texts.items():
        record = document.get(part, {})
        if not isinstance(record, dict):
            yield Finding("R-037", part, "is no object")
            continue
        for name in names:
            if not isinstance(record.get(name, ""), str):
                yield Finding("R-037", f"{part}/{name}", "is no string")


def _extensions(record: Json) -> Iterator[Finding]:
    if not isinstance(record, dict):
        yield Finding("R-016", "extensions", "is no object")
        return
    for name, value in record.items():
        if not _EXTENSION.fullmatch(name):
            yield Finding("R-016", f"extensions/{name}", "is no reverse-DNS name")
        if not isinstance(value, dict):
            yield Finding("R-016", f"extensions/{name}", "is no object")


def _keys(tensors: Mapping[str, Spec]) -> Iterator[Finding]:
    for key, (_, shape) in tensors.items():
        if not _NAME.fullmatch(key):
            yield Finding("R-009", key, f"is not 1 to {NAME_BYTES} printable ASCII characters")
        if 0 in shape:
            yield Finding("R-038", key, "is empty")


def _targets(record: Json, tensors: Mapping[str, Spec]) -> Iterator[Finding]:
    if not isinstance(record, dict) or not record:
        yield Finding("R-020", "targets", "is no object with at least one target")
        return
    taken: set[str] = set()
    for name, target in record.items():
        place = f"targets/{name}"
        if not _NAME.fullmatch(name):
            yield Finding("R-021", place, "is not printable ASCII without spaces")
        if not isinstance(target, dict):
            yield Finding("R-022", place, "is no object")
            continue
        roles = target.get("tensors")
        if isinstance(roles, dict):
            taken.update(f"{name}/{role}" for role in roles)
        yield from check_target(place, target, _of_target(name, tensors))
    for key in sorted(set(tensors) - taken):
        yield Finding("R-027", key, "belongs to no target")


def _of_target(name: str, tensors: Mapping[str, Spec]) -> dict[str, Spec]:
    roles = ("A", "B", "magnitude", "delta", "value")
    return {role: tensors[f"{name}/{role}"] for role in roles if f"{name}/{role}" in tensors}


def check_target(place: str, target: Mapping[str, Json], tensors: Mapping[str, Spec]) -> Iterator[Finding]:
    """Everything that one target breaks, R-022 to R-036.

    Args:
        place: where the target stands, for the findings.
        target: its record in the document.
        tensors: role to dtype and shape, of those roles that the file holds.
    """
    try:
        kind = Kind(str(target.get("kind")))
    except ValueError:
        yield Finding("R-022", f"{place}/kind", f"unknown kind {target.get('kind')!r}")
        return
    found = [*_layout(place, kind, target), *_scale(place, kind, target), *_roles(place, kind, target, tensors)]
    if "fingerprint" in target and not _is_digest(target["fingerprint"]):
        found.append(Finding("R-036", f"{place}/fingerprint", "is no sha256 digest"))
    if "groups" in target and kind is not Kind.CONV:
        found.append(Finding("R-032", f"{place}/groups", f"means nothing for {kind}"))
    if "rows" in target and kind is not Kind.TOKENS:
        found.append(Finding("R-033", f"{place}/rows", f"means nothing for {kind}"))
    yield from found
    if not found:
        shape = target.get("shape")
        yield from _shapes(place, kind, target, tuple(shape) if is_integers(shape) else None, tensors)


def _layout(place: str, kind: Kind, target: Mapping[str, Json]) -> Iterator[Finding]:
    layout = target.get("layout", [])
    if not isinstance(layout, list) or tuple(map(str, layout)) not in LAYOUTS[kind]:
        known = " or ".join("[" + ", ".join(names) + "]" for names in sorted(LAYOUTS[kind]))
        yield Finding("R-023", f"{place}/layout", f"{layout!r} is no layout of {kind}: {known}")
        return
    if "shape" not in target and kind is Kind.TOKENS:
        return
    shape = target.get("shape")
    if not is_integers(shape) or not all(0 < axis <= AXIS_LENGTH for axis in shape):
        yield Finding("R-024", f"{place}/shape", "is no list of positive lengths")
    elif len(shape) > AXES or (kind is not Kind.FULL and len(shape) != len(layout)):
        yield Finding("R-024", f"{place}/shape", f"has {len(shape)} axes, the layout {len(layout)}")


def _scale(place: str, kind: Kind, target: Mapping[str, Json]) -> Iterator[Finding]:
    scale = target.get("scale")
    if kind not in SCALED:
        if "scale" in target:
            yield Finding("R-025", f"{place}/scale", f"a {kind} target has no change to scale")
    elif not isinstance(scale, int | float) or isinstance(scale, bool) or not math.isfinite(scale):
        yield Finding("R-025", f"{place}/scale", f"{scale!r} is no finite number")


def _roles(place: str, kind: Kind, target: Mapping[str, Json], tensors: Mapping[str, Spec]) -> Iterator[Finding]:
    stated = target.get("tensors")
    if not isinstance(stated, dict):
        yield Finding("R-026", f"{place}/tensors", "is no object")
        return
    required, optional = _REQUIRED[kind], _OPTIONAL.get(kind, frozenset())
    for role in sorted(required - set(stated)):
        yield Finding("R-026", f"{place}/tensors", f"a {kind} target needs {role}")
    for role in sorted(set(stated) - required - optional):
        yield Finding("R-026", f"{place}/tensors/{role}", f"a {kind} target has no {role}")
    for role, digest in stated.items():
        if role not in required | optional:
            continue
        if not _is_digest(digest):
            yield Finding("R-034", f"{place}/tensors/{role}", "is no sha256 digest")
        if role not in tensors:
            yield Finding("R-027", f"{place}/tensors/{role}", "is not in the file")
        elif kind not in (Kind.FULL, Kind.TOKENS) and not DTYPES[tensors[role][0]].floating:
            yield Finding("R-028", f"{place}/tensors/{role}", f"{tensors[role][0]} is not floating point")


def _is_digest(value: Json) -> bool:
    try:
        return isinstance(value, str) and bool(Digest.parse(value))
    except ValueError:
        return False


def _shapes(
    place: str, kind: Kind, target: Mapping[str, Json], shape: tuple[int, ...] | None, tensors: Mapping[str, Spec]
) -> Iterator[Finding]:
    """Shapes against each other; the record is sound field by field when this runs."""
    if kind is Kind.TOKENS:
        yield from _rows(place, target, shape, tensors["value"][1])
        return
    assert shape is not None
    for role in ("value", "delta"):
        if role in tensors and tensors[role][1] != shape:
            yield Finding("R-031", f"{place}/tensors/{role}", f"has shape {list(tensors[role][1])}, not {list(shape)}")
    if kind not in LOW_RANK:
        return
    a, b = tensors["A"][1], tensors["B"][1]
    yield from _factors(place, kind, target, shape, a, b)
    out = shape[_axis(target, "out")]
    if "magnitude" in tensors and tensors["magnitude"][1] != (out,):
        yield Finding("R-030", f"{place}/tensors/magnitude", f"has shape {list(tensors['magnitude'][1])}, not [{out}]")


def _axis(target: Mapping[str, Json], name: str) -> int:
    layout = target["layout"]
    assert isinstance(layout, list)
    return layout.index(name)


def _factors(
    place: str, kind: Kind, target: Mapping[str, Json], shape: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]
) -> Iterator[Finding]:
    """R-029 and R-032: the shapes that A and B must have, given the base tensor's and the rank."""
    out, inner = shape[_axis(target, "out")], shape[_axis(target, "in")]
    rank = a[1 if kind is Kind.EXPERTS else 0] if len(a) > 1 else 0
    wanted_a: tuple[int, ...] = (rank, inner)
    wanted_b: tuple[int, ...] = (out, rank)
    if kind is Kind.EXPERTS:
        experts = shape[_axis(target, "expert")]
        wanted_a, wanted_b = (experts, rank, inner), (experts, out, rank)
    elif kind is Kind.CONV:
        groups = target.get("groups", 1)
        if type(groups) is not int or groups < 1 or rank % groups or out % groups:
            yield Finding("R-032", f"{place}/groups", f"{groups!r} does not divide rank {rank} and {out} outputs")
            return
        kernel = shape[2:]
        wanted_a = (rank, inner * groups, *kernel)
        wanted_b = (out, rank // groups, *(1 for _ in kernel))
    for role, actual, wanted in (("A", a, wanted_a), ("B", b, wanted_b)):
        if actual != wanted:
            yield Finding("R-029", f"{place}/tensors/{role}", f"has shape {list(actual)}, not {list(wanted)}")


def _rows(
    place: str, target: Mapping[str, Json], shape: tuple[int, ...] | None, value: tuple[int, ...]
) -> Iterator[Finding]:
    rows = target.get("rows")
    if not is_integers(rows) or not rows or min(rows) < 0:
        yield Finding("R-033", f"{place}/rows", "is no list of row numbers")
        return
    if rows != sorted(set(rows)):
        yield Finding("R-033", f"{place}/rows", "is not ascending, or names a row twice")
    if shape is not None and max(rows) >= shape[0]:
        yield Finding("R-033", f"{place}/rows", f"row {max(rows)} is beyond the {shape[0]} rows of the base tensor")
    wanted = (len(rows), shape[1] if shape is not None else (value[1] if len(value) == 2 else 0))
    if value != wanted:
        yield Finding("R-031", f"{place}/tensors/value", f"has shape {list(value)}, not {list(wanted)}")
