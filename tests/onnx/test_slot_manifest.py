"""The note of a switchable model: read as it was written, and anything else is one clear error."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lora_registry.adapter import Kind
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.onnx.slots.manifest import KEY, Slot, SlotManifest

LINEAR = Slot(
    target="layer.weight", kind=Kind.LINEAR, layout=("out", "in"), shape=(4, 6), dtype="F32", nodes=("op",),
    fingerprint=Digest.of(b"base"),
)  # fmt: skip
CONV = Slot(
    target="conv.weight", kind=Kind.CONV, layout=("out", "in", "k"), shape=(4, 6, 3), dtype="F16", nodes=("a", "b"),
    fingerprint=Digest.of(b"other"), rounded=True,
)  # fmt: skip
MANIFEST = SlotManifest(slots={slot.target: slot for slot in (LINEAR, CONV)}, tool="loreg 0")


@pytest.mark.parametrize("batched", [False, True])
def test_round_trip(batched: bool) -> None:
    """What is written is read, under its key among others; nothing is read where the key is absent."""
    manifest = replace(MANIFEST, batched=batched)
    assert SlotManifest.of({KEY: manifest.encode(), "other": "1"}) == manifest
    assert SlotManifest.of({"other": "1"}) is None


def test_the_version_is_that_of_the_meaning() -> None:
    """W-005: another base, dtype, node or batch is another version; another tool is not."""
    version = MANIFEST.model_version
    assert replace(MANIFEST, tool="loreg 1").model_version == version
    changed = [
        replace(MANIFEST, batched=True),
        replace(MANIFEST, slots={LINEAR.target: LINEAR}),
        *(
            replace(MANIFEST, slots={**MANIFEST.slots, LINEAR.target: replace(LINEAR, **{name: value})})
            for name, value in (("fingerprint", Digest.of(b"x")), ("dtype", "F16"), ("nodes", ("other",)))
        ),
    ]
    assert len({version, *(manifest.model_version for manifest in changed)}) == 1 + len(changed)


def test_shapes_of_the_inputs() -> None:
    """A (in, r) and B (r, out); of a convolution A (r, in, k) and B (out, r, 1)."""
    assert (LINEAR.factor_shape("A", 2), LINEAR.factor_shape("B", 2)) == ((6, 2), (2, 4))
    assert (CONV.factor_shape("A", 2), CONV.factor_shape("B", 2)) == ((2, 6, 3), (4, 2, 1))
    for slot in (LINEAR, CONV):
        for role in ("A", "B"):
            assert slot.factor_shape(role, 99)[slot.rank_axis(role)] == 99


def edited(**change: Any) -> str:
    """The manifest with other fields in its first slot."""
    document = json.loads(MANIFEST.encode())
    document["slots"]["layer.weight"].update(change)
    return json.dumps(document)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "bias"},
        {"kind": 7},
        {"layout": ["in"]},
        {"layout": "in"},
        {"shape": [4, -6]},
        {"shape": [4, "6"]},
        {"shape": [4]},
        {"dtype": "F33"},
        {"nodes": None},
        {"fingerprint": "sha256:short"},
    ],
    ids=str,
)
def test_a_slot_that_is_none(change: dict[str, Any]) -> None:
    """Each field is checked, and the slot is named."""
    with pytest.raises(InvalidInputError, match=r"loreg\.slots: slots/layer\.weight is not a slot"):
        SlotManifest.decode(edited(**change))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "slots": [], "batched": false}'])
def test_other_documents(text: str) -> None:
    """No manifest at all is one line; a later version is told as such."""
    with pytest.raises((InvalidInputError, UnsupportedError), match=r"loreg\.slots"):
        SlotManifest.decode(text)
    with pytest.raises(UnsupportedError, match="version 2; this loreg reads version 1"):
        SlotManifest.decode('{"version": 2, "slots": {}, "batched": false}')
