"""The adapter's metadata as the one JSON document of a file, and back.

Fields that this version does not know ride along in ``extra``: reading and writing back loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from lora_registry.adapter import SCALED, Adapter, Base, Json, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.format.features import content_features, required_features
from lora_registry.format.rules import FORMAT_MAJOR, KEY
from lora_registry.format.segment_record import from_record, to_record

_DESCRIPTIONS = ("info", "origin", "tokenizer", "lineage", "training", "extensions")
_TOP = {KEY, "requires", "base", "gate", "targets", *_DESCRIPTIONS}
_TARGET = {
    *("kind", "layout", "shape", "scale", "tensors", "fingerprint"),
    *("groups", "rows", "length", "segments", "initial"),
}
_BASE = {"name", "revision", "license", "view"}


def tensor_key(target: str, role: str) -> str:
    """The key under which the tensor in ``role`` of a target stands in the file."""
    return f"{target}/{role}"


def to_document(adapter: Adapter) -> dict[str, Json]:
    """The JSON document of ``adapter``; hashes tensors whose digest is not known yet."""
    document: dict[str, Json] = {**adapter.extra, KEY: FORMAT_MAJOR}
    requires: dict[str, Json] = {}
    if features := required_features(adapter):
        requires["read"] = list[Json](features)
    if adapter.requires_write:
        requires["write"] = list[Json](sorted(adapter.requires_write))
    parts: dict[str, dict[str, Json]] = {
        "requires": requires,
        "base": _base_record(adapter.base),
        "gate": {"tokens": list[Json](adapter.gate)} if adapter.gate else {},
        **{name: dict(getattr(adapter, name)) for name in _DESCRIPTIONS},
    }
    document.update({key: part for key, part in parts.items() if part})
    document["targets"] = {target.name: target_record(target) for target in adapter}
    return document


def _base_record(base: Base) -> dict[str, Json]:
    texts = {"name": base.name, "revision": base.revision, "license": base.license}
    record: dict[str, Json] = {**base.extra, **{key: value for key, value in texts.items() if value is not None}}
    if base.view:
        record["view"] = dict(base.view)
    return record


def target_record(target: Target) -> dict[str, Json]:
    """The JSON record of one target."""
    record: dict[str, Json] = {
        **target.extra,
        "kind": target.kind.value,
        "tensors": {role: str(target.digest(role)) for role in target.tensors},
    }
    if target.layout:
        record["layout"] = list[Json](target.layout)
    if target.shape is not None:
        record["shape"] = list[Json](target.shape)
    if target.kind in SCALED:
        record["scale"] = target.scale
    if target.groups != 1:
        record["groups"] = target.groups
    if target.rows:
        record["rows"] = list[Json](target.rows)
    if target.length is not None:
        record["length"] = target.length
    if target.segments is not None:
        record["segments"] = to_record(target.segments)
    if target.initial:
        record["initial"] = target.initial
    if target.fingerprint is not None:
        record["fingerprint"] = str(target.fingerprint)
    return record


def from_document(document: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter that a document and its tensors describe.

    Args:
        document: one that :func:`lora_registry.format.rules.check_document` finds nothing wrong with.
        tensors: key in the file to tensor.
    """
    base = _object(document.get("base"))
    requires = _object(document.get("requires"))
    targets = tuple(_target(name, _object(record), tensors) for name, record in _object(document["targets"]).items())
    gate = tuple(cast("list[int]", _object(document.get("gate")).get("tokens", [])))
    named = frozenset(cast("list[str]", requires.get("read", [])))
    return Adapter(
        targets=targets,
        base=Base(
            name=cast("str | None", base.get("name")),
            revision=cast("str | None", base.get("revision")),
            license=cast("str | None", base.get("license")),
            view=_object(base.get("view")),
            extra={key: value for key, value in base.items() if key not in _BASE},
        ),
        gate=gate,
        info=_object(document.get("info")),
        origin=_object(document.get("origin")),
        tokenizer=_object(document.get("tokenizer")),
        lineage=_object(document.get("lineage")),
        training=_object(document.get("training")),
        requires_read=named - content_features(targets, gate),
        requires_write=frozenset(cast("list[str]", requires.get("write", []))),
        extensions=_object(document.get("extensions")),
        extra={key: value for key, value in document.items() if key not in _TOP},
    )


def _object(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _target(name: str, record: Mapping[str, Json], tensors: Mapping[str, Tensor]) -> Target:
    digests = {role: Digest.parse(str(text)) for role, text in _object(record["tensors"]).items()}
    shape = cast("list[int] | None", record.get("shape"))
    fingerprint, segments = record.get("fingerprint"), record.get("segments")
    return Target(
        name=name,
        kind=Kind(str(record["kind"])),
        layout=tuple(cast("list[str]", record.get("layout", []))),
        shape=None if shape is None else tuple(shape),
        tensors={role: tensors[tensor_key(name, role)] for role in digests},
        scale=float(cast("float", record.get("scale", 1.0))),
        groups=cast("int", record.get("groups", 1)),
        rows=tuple(cast("list[int]", record.get("rows", []))),
        length=cast("int | None", record.get("length")),
        segments=None if segments is None else from_record(_object(segments)),
        initial=cast("int", record.get("initial", 0)),
        fingerprint=None if fingerprint is None else Digest.parse(str(fingerprint)),
        digests=digests,
        extra={key: value for key, value in record.items() if key not in _TARGET},
    )
