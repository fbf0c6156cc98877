"""What the catalogue says of a manifest, made from the blobs alone: its rows are a cache of this."""

from __future__ import annotations

from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError, InvalidInputError
from lora_registry.format.reader import NativeFile, open_native
from lora_registry.store.blobs import BlobStore
from lora_registry.store.catalogue import Entry
from lora_registry.store.manifest import MANIFEST_BYTES, Blob, Manifest
from lora_registry.store.record import Summary


def read_entry(blobs: BlobStore, digest: Digest) -> Entry:
    """Make the row of a manifest from its blob and the header of its adapter; the data is not read.

    Raises:
        NotFoundError: a blob is missing.
        IntegrityError: a blob is not what the manifest says, or the manifest not the one of its native file.
        ConflictError: the manifest is that of a draft; see :meth:`Manifest.decode`.
    """
    if blobs.locate(digest).stat().st_size > MANIFEST_BYTES:
        raise IntegrityError(f"the blob {digest} is too large for a manifest")
    data = blobs.read(digest)
    manifest = Manifest.decode(data)
    for blob in (manifest.config, manifest.layer):
        size = blobs.locate(blob.digest).stat().st_size
        if size != blob.size:
            raise IntegrityError(f"the blob {blob.digest} has {size} bytes, its manifest states {blob.size}")
    native = open_layer(blobs, digest, manifest.layer)
    return Entry(
        digest=digest,
        blob=manifest.layer.digest,
        content=manifest.content,
        size=manifest.layer.size,
        summary=Summary.of(native.adapter),
        blobs={
            digest: len(data),
            manifest.config.digest: manifest.config.size,
            manifest.layer.digest: manifest.layer.size,
        },
    )


def open_layer(blobs: BlobStore, digest: Digest, layer: Blob) -> NativeFile:
    """Open the native file of a manifest: the manifest that follows from the file has the manifest's digest.

    Args:
        blobs: where the file is.
        digest: digest of the manifest, whose blob is looked at only to say what is wrong.
        layer: digest and size of the file, which is there.

    Raises:
        NotFoundError: a blob is missing.
        IntegrityError: the file is damaged, or has another manifest.
        ConflictError: it has the manifest of a draft; see :meth:`Manifest.decode`.
    """
    try:
        native = open_native(blobs.locate(layer.digest))
    except InvalidInputError as error:
        raise IntegrityError(f"the blob {layer.digest} is no sound adapter: {error}") from error
    made = Manifest.of(native, layer)
    if made.digest != digest:
        what = ", ".join(Manifest.decode(blobs.read(digest)).differences(made))
        raise IntegrityError(f"the manifest {digest} is not that of its native file: another {what}")
    return native
