"""The seal of a manifest's row: what lists show is noticed to be damaged without opening a file."""

from __future__ import annotations

from lora_registry.adapter import Json
from lora_registry.digest import Digest
from lora_registry.format.canonical import JsonError, encode


def seal(digest: Json, blob: Json, content: Json, size: Json, summary: Json) -> str | None:
    """sha256 of the canonical JSON of the row's other columns; None where they hold what JSON cannot say."""
    row = {"digest": digest, "blob": blob, "content": content, "size": size, "summary": summary}
    try:
        return str(Digest.of(encode(row)))
    except JsonError:
        return None
