"""Writing a foreign format, with the refusal of losses that a caller may ask for."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lora_registry.adapter import Adapter
from lora_registry.convert.protocol import Converter
from lora_registry.convert.report import Report
from lora_registry.errors import UnsupportedError


def write_as(converter: Converter, adapter: Adapter, path: Path, *, strict: bool = False) -> Report:
    """Write ``adapter`` through ``converter``.

    Args:
        converter: the format to write.
        adapter: what to write.
        path: where; must not exist.
        strict: write nothing if something would be dropped.

    Raises:
        UnsupportedError: the format cannot hold the adapter, or ``strict`` and something would be dropped.
        ConflictError: ``path`` exists.
    """
    if strict:
        # Only writing tells what is lost, so the rehearsal writes beside the real place.
        with tempfile.TemporaryDirectory(prefix=".loreg-", dir=path.absolute().parent) as folder:
            rehearsal = converter.write(adapter, Path(folder) / path.name)
        if rehearsal.losses:
            raise UnsupportedError(
                f"--strict: {converter.name} cannot hold {rehearsal.losses[0].subject}: {rehearsal.losses[0].reason}"
            )
    return converter.write(adapter, path)
