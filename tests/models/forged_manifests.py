"""What another program may write: a manifest that says other things than its native file."""

from __future__ import annotations

from dataclasses import replace

from lora_registry.digest import Digest
from lora_registry.registry import Registry
from lora_registry.store.entries import read_entry
from lora_registry.store.events import Action
from lora_registry.store.manifest import Blob, Manifest
from lora_registry.store.reference import Reference
from lora_registry.store.store import Store

BOGUS = b'{"loreg":1,"targets":{}}'

LIES: dict[str, dict[str, object]] = {
    "document": {"config": Blob(Digest.of(BOGUS), len(BOGUS))},
    "content digest": {"content": Digest.of(b"another adapter")},
    "name of the base": {"base_name": "somebody/else"},
    "license": {"license": "GPL-3.0-only"},
}
"""What a manifest says wrong, as errors call it, and the field of a manifest that says it."""


def forge(store: Store, source: str, **lies: object) -> Digest:
    """Tag a copy of the manifest of ``source`` that tells ``lies`` as ``a:forged``; log and blobs agree with it."""
    record = Registry(store.layout.root).resolve(source)
    honest = Manifest.decode(store.blobs.read(record.digest))
    forged = replace(honest, **lies)  # type: ignore[arg-type]
    return keep(store, record.digest, forged, forged.encode())


def keep(store: Store, honest: Digest, forged: Manifest, data: bytes) -> Digest:
    """Store ``data`` and tag it as ``a:forged``, with a row like that of ``honest``."""
    if forged.config.digest == Digest.of(BOGUS):
        store.blobs.put([BOGUS])
    digest = store.blobs.put([data])
    entry = read_entry(store.blobs, honest)
    blobs = {digest: len(data), forged.config.digest: forged.config.size, forged.layer.digest: forged.layer.size}
    with store.writing("forger") as writer:
        writer.add_entry(replace(entry, digest=digest, content=forged.content, blobs=blobs))
        writer.point(Reference("a", "forged"), digest, Action.PUSH)
    return digest
