"""The text of ``spec/registry.md``, taken apart, and the adapter of its examples."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path
from typing import Any

from spec_pages import rows_of

from lora_registry.adapter import Adapter, Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.format.container import encode_tensors
from lora_registry.format.reader import read_adapter

TEXT = (Path(__file__).parents[2] / "spec" / "registry.md").read_text(encoding="utf-8")
RULE = re.compile(r"^\*\*(G-\d{3})\*\* (.*)$", re.MULTILINE)
FENCE = re.compile(r"^```(\w+)(?: r=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def body(tag: str) -> str:
    """The one example with this tag, as text."""
    (found,) = [text for _, label, text in FENCE.findall(TEXT) if label == tag]
    return str(found).removesuffix("\n")


def example(tag: str) -> Any:
    """The one example with this tag, as JSON."""
    return json.loads(body(tag))


def prose() -> list[str]:
    """The lines of the text outside of fences, tables and headings."""
    return [line for line in FENCE.sub("", TEXT).splitlines() if line and not line.startswith(("|", "#"))]


def table(*header: str) -> list[list[str]]:
    """The rows of the table with this header, as cells."""
    return rows_of(TEXT, *header)


def sections() -> dict[str, str]:
    """Title to text of the numbered sections."""
    parts = re.split(r"^## (\d+\. .*)$", FENCE.sub("", TEXT), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def example_adapter(folder: Path, *, title: str | None = None) -> Adapter:
    """The adapter of section 2.1, out of a file in ``folder``; with another title where one is given."""
    described = example("adapter")
    if title is not None:
        described["document"]["info"]["title"] = title
    tensors = {
        key: Tensor(
            record["dtype"], tuple(record["shape"]), bytes(prod(record["shape"]) * DTYPES[record["dtype"]].size)
        )
        for key, record in described["tensors"].items()
    }
    path = folder / f"{described['document']['info']['title']}.safetensors"
    path.write_bytes(b"".join(encode_tensors(tensors, {"loreg": json.dumps(described["document"])})))
    return read_adapter(path)
