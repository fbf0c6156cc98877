"""Bases and adapters for the merge tests: real PEFT adapters, read by the converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
from loreg_converters.peft import converter
from peft import LoraConfig
from peft_adapters import arrays, make_peft_adapter, merged_model

from lora_registry.adapter import Adapter

Merged = tuple[Adapter, dict[str, np.ndarray]]


@pytest.fixture
def peft_merge(tmp_path: Path) -> Callable[[str, LoraConfig], Merged]:
    """A function from a tiny model's name and a configuration to the adapter and the tensors of PEFT's merge."""

    def make(name: str, config: LoraConfig) -> Merged:
        folder = tmp_path / "peft"
        wrapped = make_peft_adapter(tiny_models.MODELS[name](), config, folder)
        adapter, _ = converter.read(folder)
        return adapter, arrays(merged_model(wrapped))

    return make
