"""A base and its merge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lpatch_cases import WIDTH, Case, Cases, save_model
from onnx_models import linear_adapter

from lora_registry.adapter import Adapter
from lora_registry.merge.onnx.model import merge_onnx


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    """A function that makes a base, the merge of two of its layers, and the adapter."""

    def made(*, size: float = 0.01, **options: Any) -> Case:
        base = save_model(tmp_path / "base" / "base.onnx", **options)
        targets = tuple(
            replace(linear_adapter(name, (WIDTH, WIDTH), layout=("in", "out"), rank=rank), scale=size * 0.02)
            for name, rank in (("a.weight", 2), ("c.weight", 4))
        )
        adapter = Adapter(targets=targets)
        (tmp_path / "merged").mkdir()
        merge_onnx(adapter, base, tmp_path / "merged" / "merged.onnx")
        return base, tmp_path / "merged" / "merged.onnx", adapter

    return made


@pytest.fixture
def case(cases: Cases) -> Case:
    """The plain one: float32, one data file."""
    return cases()
