"""What only an NVIDIA GPU can show; each test skips with the reason where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from device_blocks import RARE, blocks, ordered, weights
from device_targets import TARGETS
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter
from lora_registry.algebra.arithmetic import computed_on
from lora_registry.algebra.dense import approximate
from lora_registry.algebra.election import Convention, ties
from lora_registry.algebra.truncation import Truncation
from lora_registry.device.opening import free_memory, open_cuda
from lora_registry.device.pipeline import Pipeline
from lora_registry.device.precision import full_precision
from lora_registry.errors import InvalidInputError, MachineError
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.ops.arrays import from_array, round_to
from lora_registry.runtime.resident import merge_resident

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def device() -> torch.device:
    """The GPU."""
    try:
        return open_cuda()
    except MachineError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("stored", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "full"])
def test_every_kind_gives_what_numpy_gives(name: str, stored: str, device: torch.device) -> None:
    """At most one ulp on hardly any element, in blocks and in runs of a block."""
    target = TARGETS[name]
    (wanted, told), (made, measured) = blocks(
        target, weights(target, stored), stored, most=9000, steps=3, device=device
    )
    off = np.abs(ordered(made) - ordered(wanted))
    assert off.max() <= 1
    assert np.count_nonzero(off) <= RARE * off.size + 1
    assert told is not None
    assert measured is not None
    assert measured.wanted == pytest.approx(told.wanted, rel=1e-5)


@pytest.mark.parametrize("written", ["F8_E4M3", "F8_E5M2"])
def test_float8_is_rounded_and_refused_as_by_numpy(written: str, device: torch.device) -> None:
    """The GPU's conversion rounds to nearest even; what is beyond the range is no clamped weight."""
    target = TARGETS["linear"]
    (wanted, _), (made, _) = blocks(target, weights(target, written), written, device=device)
    assert np.count_nonzero(ordered(made) != ordered(wanted)) <= RARE * made.size + 1
    far = replace(target, tensors={**target.tensors, "B": from_array(np.full((300, 8), 1e6, np.float32))})
    with pytest.raises(InvalidInputError, match="beyond the range"):
        blocks(far, round_to(np.full((300, 200), 440.0), written), written, device=device)


def test_tf32_is_not_used(device: torch.device) -> None:
    """Even where the process has switched it on: the factors of a large change would lose 13 bits."""
    target = TARGETS["linear"]
    torch.set_float32_matmul_precision("high")
    try:
        with full_precision():
            (wanted, _), (made, _) = blocks(target, weights(target, "BF16"), "BF16", device=device)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert np.count_nonzero(ordered(made) != ordered(wanted)) <= RARE * made.size + 1


def test_buffers_are_pinned(device: torch.device) -> None:
    """Or copies would wait for each other."""
    assert torch.from_numpy(Pipeline(device).buffer(1 << 20)[1000:2000]).is_pinned()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A file of 200 MB of one matrix and a vector, so that several blocks are under way."""
    random = np.random.default_rng(0)
    weight = round_to(random.normal(size=(25_000, 4096)), "BF16")
    save_file({"w": weight, "norm": weight[0]}, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


@pytest.fixture
def adapter() -> Adapter:
    """A LoRA of rank 16."""
    random = np.random.default_rng(1)
    factors = {
        "A": from_array(random.normal(size=(16, 4096)).astype(np.float32)),
        "B": from_array((random.normal(size=(25_000, 16)) * 1e-3).astype(np.float32)),
    }
    return Adapter(targets=(replace(TARGETS["linear"], shape=(25_000, 4096), tensors=factors),))


def test_a_merge_of_files(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """The CPU's bytes but for an ulp here and there, twice the same, and what is untouched to the bit."""
    for name, options in (("cpu", MergeOptions()), ("one", MergeOptions(device="cuda"))):
        merge_checkpoint(adapter, base, tmp_path / f"{name}.safetensors", options)
    merge_checkpoint(adapter, base, tmp_path / "two.safetensors", MergeOptions(device="cuda"), workers=3)
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    cpu, gpu = (open_base(tmp_path / f"{name}.safetensors") for name in ("cpu", "one"))
    off = np.abs(ordered(cpu.array("w")) - ordered(gpu.array("w")))
    assert off.max() <= 1
    assert np.count_nonzero(off) <= RARE * off.size
    assert np.array_equal(cpu.array("norm").view(np.uint16), gpu.array("norm").view(np.uint16))


def test_factors_are_there_before_the_first_block(tmp_path: Path) -> None:
    """Many small tensors, DoRA among them: those of the next one are made while blocks of others are under way."""
    random = np.random.default_rng(0)
    targets, tensors = [], {}
    for number in range(60):
        target = TARGETS[("linear", "dora", "dora, in out", "lokr")[number % 4]]
        targets.append(replace(target, name=f"w{number}"))
        tensors[f"w{number}"] = round_to(random.normal(size=target.shape), "BF16")
    save_file(tensors, tmp_path / "base.safetensors")
    for name, options in (("cpu", MergeOptions()), ("gpu", MergeOptions(device="cuda"))):
        merge_checkpoint(
            Adapter(targets=tuple(targets)),
            tmp_path / "base.safetensors",
            tmp_path / f"{name}.safetensors",
            options,
            workers=8,
        )
    cpu, gpu = (open_base(tmp_path / f"{name}.safetensors") for name in ("cpu", "gpu"))
    off = np.concatenate(
        [np.abs(ordered(cpu.array(name)) - ordered(gpu.array(name))).reshape(-1) for name in cpu.names()]
    )
    assert off.max() <= 1
    assert np.count_nonzero(off) <= RARE * off.size


@pytest.fixture
def little_memory(device: torch.device) -> Iterator[None]:
    """This process may have 64 MB of the GPU."""
    memory = free_memory(device)
    assert memory is not None
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(64e6 / memory[1], device)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0, device)


@pytest.mark.usefixtures("little_memory")
def test_too_little_memory_is_one_line(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """With the bytes that are needed and those that are free; no output."""
    with pytest.raises(MachineError, match=r"needs [\d,]+ bytes of memory on .*, and [\d,]+ of [\d,]+ are free"):
        merge_checkpoint(adapter, base, tmp_path / "out.safetensors", MergeOptions(device="cuda"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors"]


def test_resident_weights_stay_on_the_gpu(base: Path, adapter: Adapter, device: torch.device, tmp_path: Path) -> None:
    """In place, with the bytes of the merge of files; no tensor of theirs comes to the host."""
    weights = {"w": torch.from_numpy(open_base(base).array("w").view(np.int16).copy()).view(torch.bfloat16).to(device)}
    merge_checkpoint(adapter, base, tmp_path / "out.safetensors", MergeOptions(device="cuda"))
    done = merge_resident(adapter, weights, in_place=True)
    assert done.tensors["w"].device == device
    made = weights["w"].view(torch.int16).cpu().numpy()
    off = np.abs(ordered(made) - ordered(open_base(tmp_path / "out.safetensors").array("w").view(np.int16)))
    assert off.max() <= 1
    assert np.count_nonzero(off) <= RARE * off.size


def test_dense_matrices_as_by_numpy() -> None:
    """Singular values, exact and drawn, and TIES."""
    random = np.random.default_rng(0)
    changes = [random.normal(size=(700, 500)).astype(np.float32) for _ in range(3)]
    for size, truncation in ((300, Truncation(rank=8)), (700, Truncation(rank=8))):
        found = []
        for name in ("cpu", "cuda"):
            with computed_on(name):
                found.append(approximate(changes[0][:size, :size], truncation))
        assert found[0].error == pytest.approx(found[1].error, rel=1e-4)
    made = []
    for name in ("cpu", "cuda"):
        with computed_on(name):
            made.append(ties(changes, 0.2, [1.0, 0.5, -1.0], Convention.PEFT))
    assert np.allclose(made[0], made[1], rtol=1e-6, atol=1e-7)
