"""``spec/registry.md`` sections 12 to 18: the examples are OCI's and follow from each other; tables are the code's."""

from __future__ import annotations

import re
from typing import Any

import pytest
from registry_spec import TEXT, example, table
from spec_pages import code

from lora_registry import errors
from lora_registry.digest import Digest
from lora_registry.errors import LoregError
from lora_registry.format import limits
from lora_registry.format.canonical import encode
from lora_registry.store import manifest

CODES = {
    *("BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN"),
    *("MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED"),
    *("DENIED", "UNSUPPORTED", "TOOMANYREQUESTS"),
}
"""The error codes of the OCI distribution specification 1.1, section "Error Codes"."""


# 12. to 16. OCI


def check_descriptor(descriptor: dict[str, Any]) -> None:
    """The rules of the OCI image specification's content-descriptor.json and defs-descriptor.json."""
    assert set(descriptor) <= {"mediaType", "digest", "size", "artifactType", "annotations"}
    restricted = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838, section 4.2
    assert re.fullmatch(f"{restricted}/{restricted}", descriptor["mediaType"], re.ASCII)
    assert Digest.parse(descriptor["digest"])
    assert type(descriptor["size"]) is int
    assert 0 <= descriptor["size"] < 2**63
    assert all(type(value) is str for value in descriptor.get("annotations", {}).values())


def check_described(descriptor: dict[str, Any], content: bytes) -> None:
    """That a descriptor is that of these bytes."""
    assert (descriptor["digest"], descriptor["size"]) == (str(Digest.of(content)), len(content))


@pytest.mark.parametrize("name", ["manifest", "referrer"])
def test_a_manifest_is_one_of_the_image_specification(name: str) -> None:
    """The fields are those of image-manifest-schema.json, as the specification demands them of an artifact."""
    document = {"manifest": example("manifest"), "referrer": example("referrer")}[name]
    assert document["schemaVersion"] == 2
    assert document["mediaType"] == manifest.MANIFEST_TYPE
    assert set(document) <= {
        *("schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations"),
    }
    subject = [document["subject"]] if "subject" in document else []
    for descriptor in (document["config"], *document["layers"], *subject):
        check_descriptor(descriptor)
    assert len(document["layers"]) == 1
    assert document["artifactType"] in {code(row[0])[0] for row in table("media type", "of", "made by")}


def test_referrer_example() -> None:
    """The receipt is the layer, the empty object the config, the adapter the subject, and the index has all of it."""
    referrer = example("referrer")
    check_described(referrer["config"], b"{}")
    check_described(referrer["layers"][0], encode(example("receipt")))
    check_described(referrer["subject"], encode(example("manifest")))
    assert example("receipt")["adapter"] == example("digests")["content"]
    (artifact_type, title) = next(
        (code(kind)[0], code(name)[0])
        for what, kind, _, name in table(
            "what", "`artifactType`, also the layer's media type", "the layer", "its title"
        )
        if what == "receipt of a merge"
    )
    assert referrer["artifactType"] == referrer["layers"][0]["mediaType"] == artifact_type
    assert referrer["layers"][0]["annotations"] == {"org.opencontainers.image.title": title}
    (listed,) = example("referrers-index")["manifests"]
    check_descriptor(listed)
    check_described(listed, encode(referrer))
    assert listed["artifactType"] == artifact_type
    assert f"Its digest is `{Digest.of(encode(referrer))}`" in TEXT
    assert f"`sha256-{Digest.parse(example('digests')['manifest']).hex}`" in TEXT


def test_layout_example() -> None:
    """The index has the tags of the state of section 5.1, and the marker is that of the image specification."""
    assert example("layout") == {"imageLayoutVersion": "1.0.0"}
    index = example("layout-index")
    (tag,) = example("state")["tags"]
    (listed,) = index["manifests"]
    check_descriptor(listed)
    check_described(listed, encode(example("manifest")))
    assert listed["artifactType"] == manifest.ARTIFACT_TYPE
    assert listed["annotations"] == {"org.opencontainers.image.ref.name": tag["name"]}
    assert index["annotations"] == {"dev.loreg.repository": tag["repository"]}


def test_table_of_media_types() -> None:
    """The types that the code writes are in the table, and no other of loreg's is in the text."""
    stated = {code(name)[0] for name, *_ in table("media type", "of", "made by")}
    assert {manifest.MANIFEST_TYPE, manifest.ARTIFACT_TYPE, manifest.CONFIG_TYPE, manifest.LAYER_TYPE} <= stated
    assert set(re.findall(r"application/vnd\.[a-z0-9.+]+", TEXT)) == stated


def test_table_of_annotations() -> None:
    """The annotations that the code and the examples write are all in the table."""
    stated = {code(name)[0]: code(where) for name, where, _ in table("annotation", "stands on", "value")}
    assert {manifest.CONTENT, manifest.BASE_NAME, manifest.LICENSE} == set(example("manifest")["annotations"])
    written = set(re.findall(r'"((?:dev\.loreg|org\.opencontainers\.image)\.[a-z.]+)": "', TEXT))
    assert written == set(stated)


def test_limits_of_a_pull() -> None:
    """The limits are those of the code that reads the same things in a local registry."""
    stated = dict(table("limit", "value"))
    assert stated["bytes of a manifest or an index"] == str(manifest.MANIFEST_BYTES)
    assert stated["bytes of a document"] == str(limits.HEADER_BYTES)
    assert f"at most {limits.JSON_DEPTH} levels" in TEXT
    steps = table("step", "what is done", "else")
    assert [number for number, *_ in steps] == [str(number) for number in range(1, len(steps) + 1)]
    assert f"stop after {manifest.MANIFEST_BYTES} bytes" in steps[0][1]
    assert f"at most {limits.HEADER_BYTES};" in steps[6][1]


# 18. Errors


def test_tables_of_errors() -> None:
    """Every code of the distribution specification has an error of loreg's, with the exit code that it has."""
    tree = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LoregError)]
    exits = {kind.code: str(kind.exit_code) for kind in tree}
    by_code = table("code of the distribution specification", "error", "exit")
    assert {code(name)[0] for name, *_ in by_code} == CODES
    assert len(by_code) == len(CODES)
    for _, error, number in (*by_code, *table("what happens", "error", "exit")):
        assert exits[code(error)[0]] == number
    for _, _, error in table("step", "what is done", "else"):
        assert not code(error) or code(error)[0] in exits
