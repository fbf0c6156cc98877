"""Undoing a merge, and comparing every byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lora_registry.merge.undo.patch import write_undo
from lora_registry.merge.undo.unmerge import unmerge


def content(folder: Path) -> dict[str, str]:
    """The digest of every file."""
    if folder.is_file():
        return {"": hashlib.sha256(folder.read_bytes()).hexdigest()}
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def there_and_back(base: Path, merged: Path, tmp_path: Path) -> None:
    """Write the patch, undo, and compare every file."""
    patch = tmp_path / "patch.undo"
    size = write_undo(base, merged, patch)
    assert size.patch == patch.stat().st_size
    out = tmp_path / f"again{base.suffix}"
    before = content(merged)
    unmerge(merged, patch, out)
    assert content(out) == content(base)
    assert content(merged) == before
