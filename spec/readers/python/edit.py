"""Beside loreg_reader.py, an editor: the file with another title, by P-025 and P-026 of adapter-format.md 1.0."""

from __future__ import annotations

from typing import Any

from loreg_reader import FEATURES, Adapter, RefusalError
from write import file_of


def edit(adapter: Adapter, request: dict[str, Any]) -> dict[str, str]:
    """Answer a request to edit; RefusalError where an editor has to know more than this one (P-025)."""
    unknown = set(adapter.document.get("requires", {}).get("write", [])) - set(FEATURES)
    if unknown:
        raise RefusalError("unsupported", f"an editor has to know {', '.join(sorted(unknown))}")
    info = adapter.document.get("info", {}) | {"title": request["title"]}
    return {"bytes": file_of(adapter, adapter.document | {"info": info}).hex()}
