"""Editing: a changed copy of an adapter, unless it says that it needs an editor who knows more (P-025)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lora_registry.adapter import Adapter
from lora_registry.errors import UnsupportedError
from lora_registry.format.features import FEATURES


def edited(adapter: Adapter, **fields: Any) -> Adapter:
    """A copy of ``adapter`` with other ``fields``; everything else is kept, unknown fields too (P-026).

    Raises:
        UnsupportedError: ``requires.write`` names a feature that this version does not implement.
    """
    unknown = sorted(adapter.requires_write - FEATURES)
    if unknown:
        raise UnsupportedError(f"changing this adapter needs {', '.join(unknown)}, which this version does not know")
    return replace(adapter, **fields)
