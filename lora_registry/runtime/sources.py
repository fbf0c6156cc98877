"""Adapters as a program names them: already open, or by the path of a native file or a foreign file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

from lora_registry.adapter import Adapter
from lora_registry.convert.discover import detect
from lora_registry.format.reader import is_native, read_adapter

Source: TypeAlias = "Adapter | Path | str"
"""An adapter, or where one is."""


def read_source(source: Source) -> Adapter:
    """The adapter that ``source`` stands for.

    Raises:
        NotFoundError: nothing is there.
        InvalidInputError, UnsupportedError: it is no adapter, or one that cannot be read.
    """
    if isinstance(source, Adapter):
        return source
    path = Path(source)
    if path.exists() and is_native(path):
        return read_adapter(path)
    adapter, _ = detect(path).read(path)
    return adapter
