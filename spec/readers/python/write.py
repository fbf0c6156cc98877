"""The canonical file of an adapter, by P-019 to P-022 of adapter-format.md 1.0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rules import FEATURES, SIZES
from strict_json import RefusalError, canonical

if TYPE_CHECKING:
    from loreg_reader import Adapter


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


def write(adapter: Adapter, document: dict[str, Any]) -> bytes:
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


def edit(adapter: Adapter, title: str) -> bytes:
    """The file with another title; RefusalError where an editor has to know more than this one (P-025)."""
    unknown = set(adapter.document.get("requires", {}).get("write", [])) - set(FEATURES)
    if unknown:
        raise RefusalError("unsupported", f"an editor has to know {', '.join(sorted(unknown))}")
    return write(adapter, adapter.document | {"info": adapter.document.get("info", {}) | {"title": title}})
