"""Commands that only look at an adapter read its header, however large it is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_adapters import sparse_adapter

MEBI = 1 << 20

MEASURED = """
import resource, sys
from click.testing import CliRunner
from lora_registry.cli import main
result = CliRunner().invoke(main, sys.argv[1:])
assert result.exit_code == 0, result.output
read = next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))
print(read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def cost(*arguments: str | Path) -> tuple[int, int]:
    """Bytes that a command reads by system calls, and the most memory that it has resident."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    read, resident = done.stdout.split()
    return int(read), int(resident)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes through /proc")
@pytest.mark.parametrize("options", [[], ["--targets"], ["--json"]])
def test_show_reads_no_more_of_a_gibibyte_than_of_a_kilobyte(tmp_path: Path, options: list[str]) -> None:
    """The difference is below 1 MiB read, and below 8 MiB of resident memory, the mapped file included."""
    small = sparse_adapter(tmp_path / "small.loreg.safetensors", 8)
    large = sparse_adapter(tmp_path / "large.loreg.safetensors", 1 << 23)
    assert large.stat().st_size > 1 << 30
    read, resident = cost("show", small, *options)
    read_large, resident_large = cost("show", large, *options)
    assert read_large - read < MEBI
    assert resident_large - resident < 8 * MEBI
