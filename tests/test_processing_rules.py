"""Every processing rule of the specification is shown by a test or a vector that names it, or a table says why not."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from algebra_adapters import adapter, target
from safetensors.numpy import save_file

from lora_registry.adapter import Base
from lora_registry.errors import UnsupportedError
from lora_registry.format.writer import write_adapter
from lora_registry.merge.fitting.against import hold_against
from lora_registry.merge.fitting.pin import pin

TESTS = Path(__file__).parent
SPEC = TESTS.parent / "spec"
RULE = re.compile(r"\bP-\d{3}\b")

NOT_SHOWN = {
    "P-027": "it binds the minor versions after this one",
    "P-028": "there has been one major version",
    "P-037": "loreg does not keep it: it maps the files that its user names, and only those of a registry are sealed",
}
"""Rules that no test shows, each with the reason."""


def in_docstrings() -> Iterator[tuple[str, str]]:
    """Each P rule that the docstring of a test names, and the test."""
    for path in TESTS.rglob("test_*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for rule in RULE.findall(ast.get_docstring(node) or ""):
                    yield rule, f"{path.name}::{node.name}"


def in_vectors() -> Iterator[tuple[str, str]]:
    """Each P rule that a vector is about, and the vector."""
    index = json.loads((SPEC / "vectors" / "index.json").read_text(encoding="utf-8"))
    for entry in index["vectors"]:
        for rule in entry["rules"]:
            if RULE.fullmatch(rule):
                yield rule, entry["id"]


def test_every_processing_rule_is_shown() -> None:
    """What no test and no vector shows is a promise that nobody holds the program to."""
    text = (SPEC / "adapter-format.md").read_text(encoding="utf-8")
    defined = set(re.findall(r"^\*\*(P-\d{3})\*\*", text, re.MULTILINE))
    shown = {rule for source in (in_docstrings(), in_vectors()) for rule, _ in source}
    assert shown - defined == set()
    assert defined - shown == set(NOT_SHOWN)


def written(folder: Path, user: str) -> bytes:
    """The file that a command writes of two adapters, run by somebody in some folder."""
    folder.mkdir()
    made = adapter(target(seed=1, rank=2, name="q.weight"), info={"title": "one", "license": "MIT"})
    for name in ("a", "b"):
        write_adapter(made, folder / f"{name}.loreg.safetensors")
    sources = [str(folder / f"{name}.loreg.safetensors") for name in ("a", "b")]
    command = [sys.executable, "-m", "lora_registry", "combine", *sources, "-o", str(folder / "c.loreg.safetensors")]
    environment = {**os.environ, "USER": user, "LOGNAME": user, "HOME": str(folder), "LOREG_HOME": str(folder / "home")}
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment)
    return (folder / "c.loreg.safetensors").read_bytes()


def test_a_file_does_not_say_where_by_whom_and_when_it_was_written(tmp_path: Path) -> None:
    """P-038: the same command of other people in other places, one after the other, writes the same bytes."""
    assert written(tmp_path / "one", "alice-of-accounting") == written(tmp_path / "other", "bob-of-billing")


def base_of(folder: Path, **tensors: np.ndarray) -> Path:
    """A checkpoint of one file; double underscores stand for dots."""
    path = folder / "base.safetensors"
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, path)
    return path


def test_a_view_that_the_base_is_not_in_is_said(tmp_path: Path) -> None:
    """P-049: an adapter that was trained on quantized values meets others, which is a finding and no refusal."""
    plain = adapter(target(seed=1, rank=2, name="q.weight"))
    viewed = replace(plain, base=Base(view={"scheme": "nf4", "block": 64}))
    base = base_of(tmp_path, q__weight=np.zeros(plain.targets[0].shape, np.float32))
    [said] = [finding for finding in hold_against(viewed, base)[0].findings if finding.rule == "M-009"]
    assert "nf4" in said.message
    assert [finding for finding in hold_against(plain, base)[0].findings if finding.rule == "M-009"] == []


def test_a_quantized_base_gives_no_fingerprints(tmp_path: Path) -> None:
    """P-050: the packed bytes are not the values of the base, and no adapter is pinned to them."""
    packed = base_of(tmp_path, q__weight=np.zeros((6, 1), np.uint8), q__weight__absmax=np.zeros(3, np.float32))
    with pytest.raises(UnsupportedError, match="quantized"):
        pin(adapter(target(seed=1, rank=2, name="q.weight")), packed)
