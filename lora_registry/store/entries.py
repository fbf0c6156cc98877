"""What the catalogue says of a manifest, made from the blobs alone: its rows are a cache of this."""

from __future__ import annotations

from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError, InvalidInputError
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import read_adapter
from lora_registry.store.blobs import BlobStore
from lora_registry.store.catalogue import Entry
from lora_registry.store.manifest import MANIFEST_BYTES, Manifest
from lora_registry.store.record import Summary


def read_entry(blobs: BlobStore, digest: Digest) -> Entry:
    """Make the row of a manifest from its blob and the header of its adapter; the data is not read.

    Raises:
        NotFoundError: a blob is missing.
        IntegrityError: a blob is not what the manifest says.
    """
    if blobs.locate(digest).stat().st_size > MANIFEST_BYTES:
        raise IntegrityError(f"the blob {digest} is too large for a manifest")
    data = blobs.read(digest)
    manifest = Manifest.decode(data)
    for blob in (manifest.config, manifest.layer):
        size = blobs.locate(blob.digest).stat().st_size
        if size != blob.size:
            raise IntegrityError(f"the blob {blob.digest} has {size} bytes, its manifest states {blob.size}")
    try:
        adapter = read_adapter(blobs.path(manifest.layer.digest))
    except InvalidInputError as error:
        raise IntegrityError(f"the blob of the manifest {digest} is no sound adapter: {error}") from None
    if content_digest(adapter) != manifest.content:
        raise IntegrityError(f"the manifest {digest} states another content digest than its adapter has")
    return Entry(
        digest=digest,
        blob=manifest.layer.digest,
        content=manifest.content,
        size=manifest.layer.size,
        summary=Summary.of(adapter),
        blobs={
            digest: len(data),
            manifest.config.digest: manifest.config.size,
            manifest.layer.digest: manifest.layer.size,
        },
    )
