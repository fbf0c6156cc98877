"""The immutable record of one pushed adapter: an OCI image manifest, stored as a blob like any other.

Nothing in it tells when, where or by whom it was pushed, so the same adapter always has the same manifest
and the same digest. Fields and media types: spec/registry.md section 2; the shape of a manifest: OCI image
specification 1.1, manifest.md, "Guidelines for Artifact Usage".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError
from lora_registry.format.canonical import JsonError, decode, encode
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import SUFFIX, NativeFile
from lora_registry.store.record import Summary

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
ARTIFACT_TYPE = "application/vnd.loreg.adapter.v1+json"
CONFIG_TYPE = "application/vnd.loreg.adapter.config.v1+json"
LAYER_TYPE = "application/vnd.loreg.adapter.v1.safetensors"
_DRAFT_LAYER_TYPE = "application/vnd.loreg.adapter.v1+safetensors"

TITLE = f"adapter{SUFFIX}"
"""File name that OCI clients give the layer; the same for all, since names are no part of identity."""

CONTENT = "dev.loreg.content"
BASE_NAME = "dev.loreg.base.name"
LICENSE = "org.opencontainers.image.licenses"
_TITLE_KEY = "org.opencontainers.image.title"

MANIFEST_BYTES = 4 << 20
"""Largest manifest that is read; OCI registries need not take more (distribution specification)."""


@dataclass(frozen=True, slots=True)
class Blob:
    """What a manifest says about one of its blobs: an OCI descriptor.

    Attributes:
        digest: sha256 of the bytes.
        size: their number.
    """

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """One adapter: the file, its metadata document, and what it means.

    Attributes:
        config: the metadata document as it stands in the file.
        layer: the native file.
        content: content digest of the adapter.
        base_name: name of the base model, where the adapter says.
        license: SPDX expression, where the adapter says.
    """

    config: Blob
    layer: Blob
    content: Digest
    base_name: str | None = None
    license: str | None = None

    @classmethod
    def of(cls, native: NativeFile, layer: Blob) -> Self:
        """The one manifest that a native file has.

        The content digest comes from the digests that the file states; its data is not read.

        Args:
            native: the file.
            layer: digest and size of its bytes.
        """
        summary = Summary.of(native.adapter)
        return cls(
            config=Blob(Digest.of(native.document), len(native.document)),
            layer=layer,
            content=content_digest(native.adapter),
            base_name=summary.base,
            license=summary.license,
        )

    @property
    def digest(self) -> Digest:
        """Digest of the canonical bytes."""
        return Digest.of(self.encode())

    def differences(self, other: Manifest) -> list[str]:
        """What two manifests say differently, in words."""
        return [words for name, words in _WORDS.items() if getattr(self, name) != getattr(other, name)]

    def encode(self) -> bytes:
        """The canonical bytes; their sha256 is the manifest's digest."""
        said = {CONTENT: str(self.content), BASE_NAME: self.base_name, LICENSE: self.license}
        return encode(
            {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "artifactType": ARTIFACT_TYPE,
                "config": _descriptor(self.config, CONFIG_TYPE),
                "layers": [{**_descriptor(self.layer, LAYER_TYPE), "annotations": {_TITLE_KEY: TITLE}}],
                "annotations": {key: value for key, value in said.items() if value is not None},
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Read a manifest that loreg wrote.

        Raises:
            IntegrityError: it is none, or not spelled canonically.
            ConflictError: a loreg before the release wrote it (spec/decisions/0011).
        """
        try:
            manifest = cls._from_document(decode(data))
        except (JsonError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"not a manifest of an adapter: {error}") from None
        if manifest.encode() != data:
            raise IntegrityError(
                "not a manifest of an adapter: it has fields, or a spelling, that loreg does not write"
            )
        return manifest

    @classmethod
    def _from_document(cls, document: Json) -> Manifest:
        fields = _object(document)
        annotations = _object(fields["annotations"])
        layers = fields["layers"]
        if not isinstance(layers, list) or len(layers) != 1:
            raise ValueError("it does not have exactly one layer")
        layer = _blob(layers[0])
        if _object(layers[0]).get("mediaType") == _DRAFT_LAYER_TYPE:
            raise ConflictError(
                f"the manifest of the native file {layer.digest} has the layer type {_DRAFT_LAYER_TYPE} of a draft, "
                f"which is {LAYER_TYPE} now; push the file again with --move"
            )
        return cls(
            config=_blob(fields["config"]),
            layer=layer,
            content=Digest.parse(_text(annotations[CONTENT])),
            base_name=_text(annotations[BASE_NAME]) if BASE_NAME in annotations else None,
            license=_text(annotations[LICENSE]) if LICENSE in annotations else None,
        )


_WORDS = {
    "config": "document",
    "layer": "native file",
    "content": "content digest",
    "base_name": "name of the base",
    "license": "license",
}
"""The fields of a manifest, as errors call them."""


def _descriptor(blob: Blob, media_type: str) -> dict[str, Json]:
    return {"mediaType": media_type, "digest": str(blob.digest), "size": blob.size}


def _blob(record: Json) -> Blob:
    fields = _object(record)
    size = fields["size"]
    if type(size) is not int or size < 0:
        raise ValueError(f"{size!r} is not a size")
    return Blob(Digest.parse(_text(fields["digest"])), size)


def _object(value: Json) -> Mapping[str, Json]:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, found {type(value).__name__}")
    return value


def _text(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected a string, found {type(value).__name__}")
    return value
