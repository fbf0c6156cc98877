"""The manifest of a pushed adapter."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from forged_manifests import LIES, forge, keep
from small_adapters import small_adapter

from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, IntegrityError
from lora_registry.format.container import open_container
from lora_registry.format.reader import read_adapter
from lora_registry.registry import Registry
from lora_registry.store.manifest import Blob, Manifest
from lora_registry.store.seal import seal
from lora_registry.store.store import Store

MANIFEST = Manifest(
    config=Blob(Digest.of(b"config"), 6),
    layer=Blob(Digest.of(b"layer"), 5),
    content=Digest.of(b"content"),
    base_name="example/base",
    license="MIT",
)


def test_a_manifest_is_an_oci_image_manifest() -> None:
    """Field names and media types are those that OCI clients look for."""
    document = json.loads(MANIFEST.encode())
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert document["artifactType"] == "application/vnd.loreg.adapter.v1+json"
    assert document["config"]["size"] == 6
    (layer,) = document["layers"]
    assert layer["annotations"] == {"org.opencontainers.image.title": "adapter.loreg.safetensors"}
    assert document["annotations"]["dev.loreg.content"] == str(MANIFEST.content)


def test_a_manifest_reads_back_as_itself() -> None:
    """With and without the fields that may be missing."""
    assert Manifest.decode(MANIFEST.encode()) == MANIFEST
    bare = Manifest(config=MANIFEST.config, layer=MANIFEST.layer, content=MANIFEST.content)
    assert Manifest.decode(bare.encode()) == bare


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        MANIFEST.encode() + b" ",
        MANIFEST.encode().replace(b'"schemaVersion":2', b'"schemaVersion":3'),
        MANIFEST.encode().replace(b'"size":5', b'"size":-5'),
        MANIFEST.encode().replace(b'"size":5', b'"size":"5"'),
        MANIFEST.encode().replace(b"sha256:", b"sha512:"),
        MANIFEST.encode().replace(b"loreg.adapter.v1.safetensors", b"other.v1.safetensors"),
    ],
)
def test_anything_else_is_refused(data: bytes) -> None:
    """A manifest is what loreg writes, byte for byte."""
    with pytest.raises(IntegrityError, match="not a manifest"):
        Manifest.decode(data)


def test_equal_adapters_have_equal_manifests_wherever_they_are_pushed(registry: Registry) -> None:
    """Nothing about time, place or person is in the digest; the config is the document of the file."""
    first = registry.push(small_adapter(1), "a:1", actor="one")
    second = registry.push(small_adapter(1), "other/b:2", actor="two")
    assert first.digest == second.digest
    assert registry.push(small_adapter(2), "a:2").digest != first.digest
    blobs = Store(registry.root).blobs
    manifest = Manifest.decode(blobs.read(first.digest))
    document = open_container(registry.path("a:1")).metadata["loreg"]
    assert blobs.read(manifest.config.digest) == document.encode()


@pytest.mark.parametrize("what", LIES)
def test_a_manifest_that_says_other_things_than_its_native_file_is_refused(
    registry: Registry, store: Store, tmp_path: Path, what: str
) -> None:
    """By everything that opens the file: a pull, a load, and a reindex, which notes it as lost; lists open none."""
    honest = registry.push(small_adapter(1), "a:1")
    digest = forge(store, "a:1", **LIES[what])
    for use in (registry.load, lambda reference: registry.pull(reference, tmp_path / "out")):
        with pytest.raises(IntegrityError, match=rf"{digest} is not that of its native file: another {what}$"):
            use("a:forged")
    assert not (tmp_path / "out").exists()
    assert registry.resolve("a:forged").digest == digest
    assert registry.reindex().lost == (("a", digest),)
    assert [record.digest for record in registry.list()] == [honest.digest]
    assert registry.load("a:1").targets


def test_a_manifest_of_a_draft_is_refused_by_name(registry: Registry, store: Store, tmp_path: Path) -> None:
    """Decision 0011: what was pushed under the former media type stays, says what helps, and that helps."""
    honest = registry.push(small_adapter(1), "a:1")
    manifest = Manifest.decode(store.blobs.read(honest.digest))
    draft = manifest.encode().replace(b"v1.safetensors", b"v1+safetensors")
    digest = keep(store, honest.digest, manifest, draft)
    hint = r"layer type application/vnd\.loreg\.adapter\.v1\+safetensors of a draft.*push the file again with --move"
    for use in (
        lambda: registry.load("a:forged"),
        lambda: registry.pull("a:forged", tmp_path / "out"),
        registry.reindex,
    ):
        with pytest.raises(ConflictError, match=hint):
            use()
    assert registry.resolve("a:forged").digest == digest
    (finding,) = registry.fsck()
    assert (finding.rule, finding.place) == ("S-015", f"manifests/{digest}")
    again = registry.push(read_adapter(registry.path("a:forged")), "a:forged", move=True)
    assert (again.digest, again.blob) == (honest.digest, honest.blob)
    registry.gc(grace=0)
    assert registry.fsck() == []
    registry.reindex()
    assert registry.load("a:forged").targets


def test_a_row_that_names_another_native_file_is_refused(registry: Registry, store: Store) -> None:
    """What is loaded is what the manifest names, whatever the catalogue says."""
    registry.push(small_adapter(1), "a:1")
    other = registry.push(small_adapter(2), "a:2")
    with store.database.writing() as connection:
        for row in connection.exec_driver_sql("SELECT digest, content, summary FROM manifests").all():
            sealed = seal(row.digest, str(other.blob), row.content, other.size, row.summary)
            values = (str(other.blob), other.size, sealed, row.digest)
            connection.exec_driver_sql("UPDATE manifests SET blob = ?, size = ?, seal = ? WHERE digest = ?", values)
    assert registry.load("a:2").targets
    with pytest.raises(IntegrityError, match="another document, native file, content digest"):
        registry.load("a:1")
