"""Opening an adapter of a gigabyte costs its header: counted below the file object, and in the memory map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from large_adapters import every_linear, new_head, write_native
from reading_cost import Tracer, resident

from lora_registry.adapter import Adapter
from lora_registry.errors import InvalidInputError
from lora_registry.format.container import open_container
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import SUFFIX, read_adapter

GIGABYTE = 10**9
MEBI = 1 << 20

on_linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="looks at memory maps through /proc")


@on_linux
@pytest.mark.parametrize("make", [every_linear, new_head])
def test_a_gigabyte_is_validated_from_less_than_a_mebibyte(make: Callable[[], Adapter], tmp_path: Path) -> None:
    """Every rule that needs no data is checked, and the content digest taken, from the header and one file object.

    P-030.
    """
    adapter = make()
    path = write_native(adapter, tmp_path / f"large{SUFFIX}")
    assert path.stat().st_size > GIGABYTE
    tracer = Tracer()
    opened = read_adapter(path, tracer)
    assert content_digest(opened) == content_digest(adapter)
    header = 8 + len(open_container(path).header_bytes)
    assert header <= tracer.bytes_read < MEBI
    assert resident(path) == 0
    value = next(iter(opened.targets[-1].tensors.values())).data
    assert value[-1] == 0
    assert resident(path) > 0  # so a look at the data would have shown


def test_the_reading_that_is_counted_is_a_validation(tmp_path: Path) -> None:
    """One wrong shape, in the last of 224 targets, is found."""
    adapter = every_linear()
    *others, last = adapter
    broken = replace(adapter, targets=(*others, replace(last, shape=(1024, 4097))))
    path = write_native(broken, tmp_path / f"large{SUFFIX}")
    with pytest.raises(InvalidInputError) as caught:
        read_adapter(path)
    assert [(finding.rule, finding.place) for finding in caught.value.findings] == [
        ("R-029", f"targets/{last.name}/tensors/A")
    ]
