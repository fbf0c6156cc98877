"""What no merge takes, whatever the base: refused before anything is computed or written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_adapters import small_adapter

from lora_registry.adapter import Adapter
from lora_registry.errors import IntegrityError, UnsupportedError
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.mergeable import check_mergeable


def damaged(folder: Path) -> Adapter:
    """An adapter of a file in which one bit of the data is another."""
    path = folder / "damaged.loreg.safetensors"
    write_adapter(small_adapter(1), path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return read_adapter(path)


def test_sound_adapters_pass(tmp_path: Path) -> None:
    """Nothing is refused without a reason."""
    check_mergeable(small_adapter(1))


def test_damaged_bytes_are_not_merged(tmp_path: Path) -> None:
    """P-024: a receipt names the content digest, so the bytes are held against it first; nothing is written."""
    base = tmp_path / "base.safetensors"
    write_adapter(small_adapter(2), base)  # any safetensors file: the adapter is judged before the base
    with pytest.raises(IntegrityError, match="R-035"):
        merge_checkpoint(damaged(tmp_path), base, tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("*out*"))


def test_a_gate_is_not_merged() -> None:
    """P-046: merged weights would be on for every token."""
    with pytest.raises(UnsupportedError, match="activated LoRA"):
        check_mergeable(replace(small_adapter(1), gate=(1, 2)))
