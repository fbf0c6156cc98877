"""The content digest, which is the identity of what an adapter does (spec section 11), and the root digest of a base.

Two files with the same content digest make the same change to the same tensors, whatever their names, the
order of their headers, their titles, licenses or provenance. It is computed from the header alone, because
the document states the digest of every tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_registry.adapter import Adapter, Json, Target
from lora_registry.digest import Digest
from lora_registry.format.canonical import encode
from lora_registry.format.document import target_record
from lora_registry.format.features import required_features

_CONTENT = b"loreg-content-v1\0"
_ROOT = b"loreg-root-v1\0"
_MEANING = ("kind", "layout", "shape", "scale", "groups", "rows", "length")


def content_digest(adapter: Adapter) -> Digest:
    """sha256 of the canonical JSON of everything in ``adapter`` that carries meaning."""
    features = required_features(adapter)
    meaning: dict[str, Json] = {
        "targets": {target.name: _meaning(target) for target in adapter},
        "requires": list[Json](features),
        "extensions": {name: adapter.extensions[name] for name in adapter.extensions if name in features},
    }
    if adapter.gate:
        meaning["gate"] = list[Json](adapter.gate)
    return Digest.of(_CONTENT, encode(meaning))


def root_digest(fingerprints: Mapping[str, Digest]) -> Digest:
    """Identity of a set of base tensors: all of a model's, or those that an adapter changes.

    sha256 of the domain and the canonical JSON of name to fingerprint (spec section 9.1). It is derived and
    never stored, because it says nothing that the fingerprints do not say.
    """
    return Digest.of(_ROOT, encode({name: str(fingerprint) for name, fingerprint in fingerprints.items()}))


def base_root(adapter: Adapter) -> Digest | None:
    """The root digest of the base tensors that ``adapter`` states fingerprints of; None where it states none."""
    stated = {target.name: target.fingerprint for target in adapter if target.fingerprint is not None}
    return root_digest(stated) if stated else None


def _meaning(target: Target) -> dict[str, Json]:
    record = target_record(target)
    meaning: dict[str, Json] = {name: record[name] for name in _MEANING if name in record}
    meaning["tensors"] = {
        role: {"dtype": tensor.dtype, "shape": list[Json](tensor.shape), "digest": str(target.digest(role))}
        for role, tensor in target.tensors.items()
    }
    return meaning
