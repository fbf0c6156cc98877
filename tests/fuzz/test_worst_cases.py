"""A file of less than a mebibyte cannot make the reader take more than 64 MiB, whatever stands in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from worst_cases import CASES, MEBI, memory_of


@pytest.mark.parametrize("name", CASES)
def test_a_mebibyte_takes_at_most_64(name: str, tmp_path: Path) -> None:
    """It is refused with findings, within the bound that the fuzzer keeps, too."""
    path = tmp_path / "case.loreg.safetensors"
    path.write_bytes(CASES[name]())
    assert path.stat().st_size <= MEBI
    findings, memory = memory_of(path)
    assert findings
    assert memory < 64 * MEBI
