"""float32 is float32, whatever the process and the thread have chosen."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from device_targets import TARGETS

from lora_registry.adapter import Adapter
from lora_registry.device.precision import full_precision
from lora_registry.runtime.resident import merge_resident


def test_the_last_of_several_sets_it_back() -> None:
    """Not the first, while another thread still computes."""
    matmul = torch.backends.cuda.matmul
    torch.set_float32_matmul_precision("high")
    try:
        first, second = full_precision(), full_precision()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert matmul.fp32_precision == "ieee"
        second.__exit__(None, None, None)
        assert matmul.fp32_precision == "tf32"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("name", ["linear", "lokr", "loha", "dora, in out"])
def test_autocast_changes_no_result(name: str) -> None:
    """Within it, torch would make products in 16 bits; without a word about a device that is not there."""
    target = TARGETS[name]
    values = np.random.default_rng(0).normal(size=target.shape).astype(np.float32)
    weights = {"w": torch.from_numpy(values).bfloat16()}
    wanted = merge_resident(Adapter(targets=(target,)), weights)
    with torch.autocast("cpu", dtype=torch.bfloat16), warnings.catch_warnings():
        warnings.simplefilter("error")
        made = merge_resident(Adapter(targets=(target,)), weights)
        assert torch.is_autocast_enabled("cpu")
    assert torch.equal(made.tensors["w"], wanted.tensors["w"])
    assert made.fidelity == wanted.fidelity
