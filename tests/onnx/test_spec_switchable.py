"""``spec/switchable.md`` is true: tests show its rules, its example is a manifest, and its style is the spec's."""

from __future__ import annotations

import re
from pathlib import Path

from lora_registry.onnx.slots import factors as slot_factors
from lora_registry.onnx.slots import manifest as slot_manifest
from lora_registry.onnx.slots.manifest import SlotManifest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "spec" / "switchable.md").read_text(encoding="utf-8")
RULES = re.findall(r"^(?:\*\*|\| )(W-\d{3})\b", TEXT, re.MULTILINE)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def test_rules_are_numbered_and_shown() -> None:
    """Every rule is defined once, none is left out, and the docstring of a test names each."""
    assert [f"W-{number:03}" for number in range(1, len(RULES) + 1)] == RULES
    shown: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for documented in re.findall(r'"""(.*?)"""', path.read_text(encoding="utf-8"), re.DOTALL):
            ends = re.findall(r"W-(\d{3}) to W-(\d{3})", documented)
            shown |= {f"W-{number:03}" for one, other in ends for number in range(int(one), int(other) + 1)}
            shown |= set(re.findall(r"\bW-\d{3}\b", documented))
    assert shown == set(RULES)


def test_findings_are_those_of_the_code() -> None:
    """The table of what does not fit has the ids that the code gives."""
    stated = re.findall(r"^\| (W-\d{3}) \|", TEXT, re.MULTILINE)
    codes = (slot_factors.NO_SLOT, slot_factors.OTHER_SHAPE, slot_factors.OTHER_BASE, slot_factors.RANGE)
    assert tuple(stated) == codes


def test_names_are_those_of_the_code() -> None:
    """Keys and inputs are called as the text says."""
    for name in (slot_manifest.KEY, slot_manifest.SCALE, slot_manifest.IDS):
        assert f"`{name}`" in TEXT


def test_the_example_is_a_manifest() -> None:
    """The document in the text is read, and written again as the same manifest; its tool is no part of its version."""
    body = re.search(r"^```json\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert body is not None
    manifest = SlotManifest.decode(body[1])
    assert SlotManifest.decode(manifest.encode()) == manifest
    (slot,) = manifest.slots.values()
    assert (slot.input("A"), slot.factor_shape("A", 8)) == (f"{slot.target}/A", (576, 8))
    without = SlotManifest(slots=manifest.slots, batched=manifest.batched)
    assert without.model_version == manifest.model_version
    assert 0 < manifest.model_version < 2**31


def test_style() -> None:
    """Key words in capitals only, and one sentence a line."""
    prose = FENCE.sub("", TEXT)
    assert re.findall(r".*\b(?:must|should|may|shall)\b.*", prose) == []
    lines = [line for line in prose.splitlines() if line and not line.startswith(("|", "#"))]
    assert [line for line in lines if re.search(r"[.?!] [A-Z]", line)] == []
