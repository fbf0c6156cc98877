"""Beside loreg_reader.py, a writer: the canonical file, by P-019 to P-022 of adapter-format.md 1.0."""

from __future__ import annotations

from typing import Any

from loreg_reader import SIZES, Adapter, canonical


def without(members: dict[str, Any], **defaults: Any) -> dict[str, Any]:
    """The members that differ from what their absence means."""
    return {name: value for name, value in members.items() if name not in defaults or value != defaults[name]}


def canonical_target(target: dict[str, Any]) -> dict[str, Any]:
    """A target without what goes without saying."""
    target = without(target, layout=[], groups=1)
    if "segments" in target:
        parts = [dict(part) for part in target["segments"]["parts"]]
        for part in parts:
            if "rope" in part:
                part["rope"] = without(part["rope"], rotary=part["rope"]["head"])
        target["segments"] = without(target["segments"] | {"parts": parts}, interleave=1)
    return target


def canonical_document(document: dict[str, Any]) -> dict[str, Any]:
    """A document without what goes without saying; fields that the text does not define are kept as they are."""
    targets = {name: canonical_target(target) for name, target in document["targets"].items()}
    requires = without(document.get("requires", {}), read=[], write=[])
    whole = document | {"targets": targets, "requires": requires}
    return without(whole, requires={}, base={}, info={}, origin={}, tokenizer={}, training={}, extensions={})


def file_of(adapter: Adapter, document: dict[str, Any]) -> bytes:
    """The file that has a document and the tensors of an adapter."""
    header: dict[str, Any] = {"__metadata__": {"loreg": canonical(canonical_document(document))}}
    keys = sorted(adapter.tensors, key=lambda key: (-SIZES[adapter.tensors[key]["dtype"]], key))
    data = b""
    for key in keys:
        begin, data = len(data), data + adapter.data(key)
        header[key] = adapter.tensors[key] | {"data_offsets": [begin, len(data)]}
    text = canonical(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def write(adapter: Adapter, _: dict[str, Any]) -> dict[str, str]:
    """Answer a request to write."""
    return {"bytes": file_of(adapter, adapter.document).hex()}
