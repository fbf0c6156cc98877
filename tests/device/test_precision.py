"""float32 is float32, whatever the process and the thread have chosen."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from device_targets import TARGETS

from lora_registry.adapter import Adapter
from lora_registry.device.precision import full_precision
from lora_registry.runtime.resident import Resident, merge_resident


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


def made(name: str) -> Resident:
    """A merge of one target."""
    target = TARGETS[name]
    values = np.random.default_rng(0).normal(size=target.shape or (700, 64)).astype(np.float32)
    weights = {"w": torch.from_numpy(values).bfloat16()}
    return merge_resident(Adapter(targets=(target,)), weights)


@contextmanager
def chosen(what: str) -> Iterator[None]:
    """What a program may have chosen for all that torch does in it."""
    try:
        match what:
            case "autocast":
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    yield
                    assert torch.is_autocast_enabled("cpu")
            case "inference":
                with torch.inference_mode():
                    yield
            case "float64 by default":
                torch.set_default_dtype(torch.float64)
                yield
            case "another device by default":
                torch.set_default_device("meta")
                yield
            case "deterministic":
                torch.use_deterministic_algorithms(True)
                yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "what", ["autocast", "inference", "float64 by default", "another device by default", "deterministic"]
)
@pytest.mark.parametrize("name", ["linear", "lokr", "loha", "dora, in out", "sparse", "tokens"])
def test_what_a_program_has_chosen_changes_no_result(name: str, what: str) -> None:
    """Within autocast, torch would make products in 16 bits. Nor is there a word about a device that is not there."""
    wanted = made(name)
    with chosen(what), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = made(name)
    assert torch.equal(found.tensors["w"], wanted.tensors["w"])
    assert found.fidelity == wanted.fidelity
