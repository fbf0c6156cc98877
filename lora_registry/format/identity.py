"""The content digest: identity of what an adapter means (spec section 11).

Two files with the same content digest make the same change to the same tensors, whatever their names, the
order of their headers, their titles, licenses or provenance. It is computed from the header alone, because
the document states the digest of every tensor.
"""

from __future__ import annotations

from lora_registry.adapter import Adapter, Json, Target
from lora_registry.digest import Digest
from lora_registry.format.canonical import encode
from lora_registry.format.document import target_record

_DOMAIN = b"loreg-content-v1\0"
_MEANING = ("kind", "layout", "shape", "scale", "groups", "rows")


def content_digest(adapter: Adapter) -> Digest:
    """sha256 of the canonical JSON of everything in ``adapter`` that carries meaning."""
    meaning: dict[str, Json] = {
        "targets": {target.name: _meaning(target) for target in adapter},
        "requires": list[Json](sorted(adapter.requires_read)),
        "extensions": {name: adapter.extensions[name] for name in adapter.extensions if name in adapter.requires_read},
    }
    return Digest.of(_DOMAIN, encode(meaning))


def _meaning(target: Target) -> dict[str, Json]:
    record = target_record(target)
    meaning: dict[str, Json] = {name: record[name] for name in _MEANING if name in record}
    meaning["tensors"] = {
        role: {"dtype": tensor.dtype, "shape": list[Json](tensor.shape), "digest": str(target.digest(role))}
        for role, tensor in target.tensors.items()
    }
    return meaning
