"""The exporter's note reads back as it was written, and anything else is refused."""

from __future__ import annotations

import json

import pytest

from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.onnx.manifest import KEY, Manifest, Place

MANIFEST = Manifest(
    tensors={"b.weight": Place("a.weight"), "a.weight": Place("a.weight"), "c.weight": Place("val_3", transposed=True)},
    task="decoder",
    dtype="F32",
    tool="loreg 0.1.0",
)


def test_reads_what_it_wrote() -> None:
    """Encoding and decoding is the identity, with and without the optional fields."""
    assert Manifest.decode(MANIFEST.encode()) == MANIFEST
    bare = Manifest(tensors={})
    assert Manifest.decode(bare.encode()) == bare


def test_equal_manifests_give_equal_text() -> None:
    """The order in which tensors were placed leaves no trace."""
    turned = Manifest(tensors=dict(reversed(MANIFEST.tensors.items())), task="decoder", dtype="F32", tool="loreg 0.1.0")
    assert turned.encode() == MANIFEST.encode()


def test_found_among_metadata() -> None:
    """The manifest is found under its key; a model without one has none."""
    assert Manifest.of({KEY: MANIFEST.encode(), "other": "x"}) == MANIFEST
    assert Manifest.of({"other": "x"}) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", "not an object with 'tensors'"),
        ('{"version":1}', "not an object with 'tensors'"),
        ('{"tensors":{"w":"w"},"version":1}', "tensors/w is not"),
        ('{"tensors":{"w":{"initializer":"w"}},"version":1}', "tensors/w is not"),
        ('{"tensors":{"w":{"initializer":1,"transposed":false}},"version":1}', "tensors/w is not"),
        ('{"tensors":{},"tensors":{},"version":1}', "stands twice"),
        ('{"dtype":3,"tensors":{},"version":1}', "dtype is not a string"),
    ],
)
def test_anything_else_is_invalid(text: str, message: str) -> None:
    """A broken manifest is one clear error that names the key."""
    with pytest.raises(InvalidInputError, match=message) as caught:
        Manifest.decode(text)
    assert str(caught.value).startswith(KEY)


def test_a_later_version_is_unsupported() -> None:
    """A manifest of a version that is not known yet is not guessed at."""
    document = json.loads(MANIFEST.encode()) | {"version": 2}
    with pytest.raises(UnsupportedError, match="version 2; this loreg reads version 1"):
        Manifest.decode(json.dumps(document))
