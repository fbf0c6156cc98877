"""What identifies an adapter and its base: content digest, fingerprints, root digest (sections 9 and 11)."""

from __future__ import annotations

import hashlib
from typing import Any

import canonical
import floats
from container import Tensor
from draft import Draft
from floats import FLOATS

_MEANING = ("kind", "layout", "shape", "scale", "groups", "rows", "length")
TWO_ORDERS = ("linear", "experts", "loha", "lokr")


def _digest(domain: str, data: bytes) -> str:
    return "sha256:" + hashlib.sha256(domain.encode() + b"\0" + data).hexdigest()


def content_digest(draft: Draft) -> str:
    """The identity of what a sound adapter does (section 11)."""
    document = canonical.canonical_document(draft.document)
    features = document.get("requires", {}).get("read", [])
    extensions = document.get("extensions", {})
    meaning = {
        "targets": {name: _meaning(draft, name, target) for name, target in document["targets"].items()},
        "requires": features,
        "extensions": {name: extensions[name] for name in extensions if name in features},
    }
    if "gate" in document:
        meaning["gate"] = document["gate"]["tokens"]
    return _digest("loreg-content-v1", canonical.encode(meaning))


def _meaning(draft: Draft, name: str, target: dict[str, Any]) -> dict[str, Any]:
    tensors = {
        role: {"dtype": item.dtype, "shape": list(item.shape), "digest": item.digest}
        for role, item in draft.roles(name).items()
    }
    return {key: target[key] for key in _MEANING if key in target} | {"tensors": tensors}


def fingerprint(base: Tensor, target: dict[str, Any]) -> str:
    """The fingerprint of a base tensor, in logical axis order (section 9)."""
    shape, values = list(base.shape), base.values
    if target["kind"] in TWO_ORDERS and target["layout"][-2:] == ["in", "out"]:
        values = transposed(values, *shape[-2:])
        shape[-2:] = shape[:-3:-1]
    widens = base.dtype in FLOATS and base.dtype != "F64"
    name = "" if widens else base.dtype + "\0"
    head = canonical.encode(shape) + b"\0" + name.encode()
    return _digest("loreg-base-v1", head + floats.encode("F32" if widens else base.dtype, values))


def transposed(values: list[Any], rows: int, columns: int) -> list[Any]:
    """Matrices of these rows and columns, one after the other, each transposed."""
    return [
        values[start + row * columns + column]
        for start in range(0, len(values), rows * columns)
        for column in range(columns)
        for row in range(rows)
    ]


def root_digest(draft: Draft) -> str | None:
    """The root digest of the fingerprints of an adapter's targets, where any has one (section 9.1)."""
    stated = {
        name: target["fingerprint"] for name, target in draft.document["targets"].items() if "fingerprint" in target
    }
    return _digest("loreg-root-v1", canonical.encode(stated)) if stated else None
