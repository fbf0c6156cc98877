"""Every rule of the format that a program can check, each with its id in ``spec/adapter-format.md``.

The functions are pure: they take the parsed document and the list of tensors, do no input or output, and
return everything they find. Readers, writers and validators call the same ones, so that what is written is
what can be read. R-001 to R-008 and R-010, the framing, are checked where the bytes are, in ``container``; R-035
and R-045, which need the data, in ``data_rules``; what describes an adapter in ``description_rules``, and a target
in ``target_rules``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain

from lora_registry.adapter import Json, Kind
from lora_registry.findings import Finding, bounded
from lora_registry.format.canonical import is_integers
from lora_registry.format.description_rules import check_descriptions
from lora_registry.format.features import FEATURES, GATE, KIND_FEATURES
from lora_registry.format.limits import NAME_BYTES
from lora_registry.format.shape_rules import TensorSpec
from lora_registry.format.target_rules import check_target

FORMAT_MAJOR = 1
KEY = "loreg"
"""Name of the one metadata entry, and of the format's version inside it."""

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
    "R-017": "what needs a feature names it among the requirements to read",
    "R-018": "a gate has the token ids that open it, and nothing else",
    "R-019": "a tokenizer has digests, and added tokens with id and text",
    "R-020": "there is at least one target",
    "R-021": "a target's name is printable ASCII without spaces",
    "R-022": "a target's kind is known",
    "R-023": "a target's layout is one of its kind",
    "R-024": "a target's shape fits its layout",
    "R-025": "the scale is a finite number, and is there exactly where there is a change to scale",
    "R-026": "a target has the tensors of its kind and no others",
    "R-027": "every tensor of the file belongs to a target, and every tensor of a target is in the file",
    "R-028": "factors, magnitudes and deltas are floating point, an index is I64",
    "R-029": "the factors have the shapes of their kind and agree on the rank",
    "R-030": "a magnitude has one element for each output",
    "R-031": "a value or delta has the shape of what it replaces or changes",
    "R-032": "groups divide the rank and the outputs of a conv",
    "R-033": "rows are ascending, each once, and within the base tensor or what is added to it",
    "R-034": "every tensor's digest is stated, as sha256",
    "R-035": "a tensor's bytes have the stated digest",
    "R-036": "a fingerprint is a sha256 digest",
    "R-037": "base, info and origin are objects; names, revisions and licenses are strings",
    "R-038": "no tensor of a native file is empty",
    "R-039": "a lineage has an operation, and parents by their content digests",
    "R-040": "training states tool and version as strings, and data sets with names",
    "R-041": "a view of the base states its scheme",
    "R-042": "segments have names, fill the outputs, and divide into the blocks they are interleaved in",
    "R-043": "initial counts some of the ranks, and not all",
    "R-044": "a length adds rows, all of which the target brings",
    "R-045": "the positions of a sparse change are ascending, each once, and within the base tensor",
}
"""Rule id to the rule in one line."""

_EXTENSION = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+", re.ASCII)
_FEATURE = re.compile(r"[a-z0-9.-]{1,100}", re.ASCII)
_NAME = re.compile(rf"[!-~]{{1,{NAME_BYTES}}}", re.ASCII)


def check_document(document: Json, tensors: Mapping[str, TensorSpec]) -> list[Finding]:
    """Everything that the document and the tensors beside it break: R-009, and R-012 to R-044 but for R-035.

    A document of another major version, or one that needs a feature this reader does not have, is not looked
    at further: every other rule may mean something else in it.

    Args:
        document: the parsed JSON of the metadata key.
        tensors: key in the container to dtype and shape.
    """
    if not isinstance(document, dict):
        return [Finding("R-012", KEY, "is no JSON object")]
    if type(document.get(KEY)) is not int or document[KEY] != FORMAT_MAJOR:
        return [Finding("R-013", KEY, f"format version {document.get(KEY)!r}, this reader knows {FORMAT_MAJOR}")]
    if unknown := list(bounded(_unknown_features(document))):
        return unknown
    parts = (
        _requirements(document),
        check_descriptions(document),
        _extensions(document.get("extensions", {})),
        _gate(document),
        _keys(tensors),
        _targets(document, tensors),
    )
    return list(bounded(chain.from_iterable(parts)))


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


def _unknown_features(document: Mapping[str, Json]) -> Iterator[Finding]:
    """R-015, whatever else is wrong with the requirements."""
    requires = document.get("requires")
    names = requires.get("read") if isinstance(requires, dict) else None
    for name in names if isinstance(names, list) else []:
        if isinstance(name, str) and name not in FEATURES:
            yield Finding("R-015", "requires/read", f"needs {name!r}, which this reader does not know")


def _needed(document: Mapping[str, Json], feature: str, place: str) -> Iterator[Finding]:
    """R-017 for one place that needs ``feature``."""
    requires = document.get("requires")
    names = requires.get("read") if isinstance(requires, dict) else None
    if not isinstance(names, list) or feature not in names:
        yield Finding("R-017", place, f"needs {feature!r} in requires/read")


def _extensions(record: Json) -> Iterator[Finding]:
    if not isinstance(record, dict):
        yield Finding("R-016", "extensions", "is no object")
        return
    for name, value in record.items():
        if not _EXTENSION.fullmatch(name):
            yield Finding("R-016", f"extensions/{name}", "is no reverse-DNS name")
        if not isinstance(value, dict):
            yield Finding("R-016", f"extensions/{name}", "is no object")


def _gate(document: Mapping[str, Json]) -> Iterator[Finding]:
    if "gate" not in document:
        return
    yield from _needed(document, GATE, "gate")
    gate = document["gate"]
    if not isinstance(gate, dict) or set(gate) != {"tokens"}:
        yield Finding("R-018", "gate", "is no object with 'tokens' alone")
        return
    tokens = gate["tokens"]
    if not is_integers(tokens) or not tokens or min(tokens) < 0:
        yield Finding("R-018", "gate/tokens", "is no list of token ids")


def _keys(tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    for key, (_, shape) in tensors.items():
        if not _NAME.fullmatch(key):
            yield Finding("R-009", key, f"is not 1 to {NAME_BYTES} printable ASCII characters")
        if 0 in shape:
            yield Finding("R-038", key, "is empty")


def _targets(document: Mapping[str, Json], tensors: Mapping[str, TensorSpec]) -> Iterator[Finding]:
    record = document.get("targets")
    if not isinstance(record, dict) or not record:
        yield Finding("R-020", "targets", "is no object with at least one target")
        return
    taken: set[str] = set()
    found = _by_target(tensors)
    for name, target in record.items():
        place = f"targets/{name[: NAME_BYTES + 1]}"  # a megabyte of name would stand in each finding
        if not _NAME.fullmatch(name):
            yield Finding("R-021", place, "is not printable ASCII without spaces")
        if not isinstance(target, dict):
            yield Finding("R-022", place, "is no object")
            continue
        roles = target.get("tensors")
        if isinstance(roles, dict):
            taken.update(f"{name}/{role}" for role in found.get(name, {}) if role in roles)
        kind = target.get("kind")
        if isinstance(kind, str) and kind in KIND_FEATURES:  # Kind is a str: the record's spelling is the key
            yield from _needed(document, KIND_FEATURES[Kind(kind)], f"{place}/kind")
        yield from check_target(place, target, found.get(name, {}))
    for key in sorted(set(tensors) - taken):
        yield Finding("R-027", key, "belongs to no target")


def _by_target(tensors: Mapping[str, TensorSpec]) -> dict[str, dict[str, TensorSpec]]:
    found: dict[str, dict[str, TensorSpec]] = {}
    for key, spec in tensors.items():
        name, _, role = key.rpartition("/")
        found.setdefault(name, {})[role] = spec
    return found
