"""The bits of a merge against the correctly rounded result: at most one ulp off, and that hardly ever.

The reference is computed from the formula in float64, with exact products of float32 factors summed by a tree in
float64, and rounded to the output's type once. It shares no code with the engine but the last rounding, and that
is held against exact fractions here.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.format.container import Entry
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.kernel import Kernel, Room
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.plan import Part
from lora_registry.ops.arrays import Array, as_bytes, from_array, numpy_dtype, round_to

SHAPE = (1500, 700)
RARE = 1e-4
"""Part of the elements that may be one ulp off."""


def target(rank: int, scale: float, rng: np.random.Generator) -> Target:
    """A change of about a hundredth of weights of size 0.02."""
    factors = {
        "A": rng.normal(size=(rank, SHAPE[1])).astype(np.float32),
        "B": (rng.normal(size=(SHAPE[0], rank)) * 2e-4 / scale / rank**0.5).astype(np.float32),
    }
    tensors = {role: from_array(array) for role, array in factors.items()}
    return Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=SHAPE, scale=scale, tensors=tensors)


def ordered(array: Array) -> np.ndarray:
    """Floats as integers that count ulps: neighbors differ by one, and both zeros are 0."""
    bits = array.view(f"i{array.itemsize}").astype(np.int64)
    return np.where(bits < 0, -(bits & ((1 << (8 * array.itemsize - 1)) - 1)), bits)


def exact(weight: Array, change: Target) -> np.ndarray:
    """W + s·B·A in float64."""
    A, B = (np.frombuffer(change.tensors[role].data, np.float32) for role in "AB")
    rank = change.tensors["A"].shape[0]
    product = (B.reshape(-1, rank).astype(np.float64) * change.scale) @ A.reshape(rank, -1).astype(np.float64)
    return weight.astype(np.float64) + product


@pytest.mark.parametrize("rank", [1, 16, 256])
@pytest.mark.parametrize(
    ("stored", "written"), [("BF16", "BF16"), ("F16", "F16"), ("F32", "F32"), ("BF16", "F32"), ("F32", "BF16")]
)
def test_a_merged_checkpoint_is_correctly_rounded(stored: str, written: str, rank: int, tmp_path: Path) -> None:
    """At most one ulp on at most one element in ten thousand, for every type of checkpoint and every rank."""
    rng = np.random.default_rng(rank)
    weight = (rng.normal(size=SHAPE) * 0.02).astype(np.float32).astype(numpy_dtype(stored))
    save_file({"w": weight}, tmp_path / "base.safetensors")
    change = target(rank, 2.0, rng)
    merge_checkpoint(
        Adapter(targets=(change,)),
        tmp_path / "base.safetensors",
        tmp_path / "out.safetensors",
        MergeOptions(dtype=written),
    )
    merged = open_base(tmp_path / "out.safetensors").array("w")
    wanted = round_to(exact(weight, change), written)
    off = np.abs(ordered(merged) - ordered(wanted))
    assert off.max() <= 1
    assert np.count_nonzero(off) <= RARE * off.size
    assert np.count_nonzero(ordered(merged) != ordered(round_to(weight.astype(np.float64), written))) > off.size / 3


@pytest.mark.parametrize("written", ["F8_E4M3", "F8_E5M2", "BF16", "F16"])
def test_a_block_is_correctly_rounded_into_every_type(written: str) -> None:
    """float8 too, into which no plan converts a checkpoint: its scales belong to a quantization."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=SHAPE).astype(numpy_dtype(written))
    change = target(16, 2.0, rng)
    size = weight.nbytes
    part = Part("w", Entry(written, SHAPE, 0, size), "w", (change,))
    kernel = Kernel(part, written, lambda start, stop: weight.reshape(-1)[start:stop])
    out = np.empty(size, np.uint8)
    kernel.run(0, weight.size, np.frombuffer(as_bytes(weight), np.uint8), out, Room(weight.size))
    off = np.abs(
        ordered(out.view(numpy_dtype(written))) - ordered(round_to(exact(weight, change), written).reshape(-1))
    )
    assert off.max() <= 1
    assert np.count_nonzero(off) <= RARE * off.size


@pytest.mark.parametrize("written", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_the_reference_rounds_to_nearest_even(written: str) -> None:
    """By exact fractions: no neighbor is nearer, and of two that are equally near, the even one is taken."""
    rng = np.random.default_rng(1)
    dtype = numpy_dtype(written)
    grid = np.sort(np.unique(np.abs(rng.normal(size=400)).astype(dtype).astype(np.float64)))
    halfway = (grid + np.nextafter(grid.astype(dtype), dtype.type(100)).astype(np.float64)) / 2
    cases = np.concatenate([halfway, np.nextafter(halfway, 0), np.nextafter(halfway, 9), rng.normal(size=400)])
    for value, rounded in zip(cases, round_to(cases, written), strict=True):
        distance = abs(Fraction(float(rounded)) - Fraction(value))
        for direction in (-100, 100):
            neighbor = np.nextafter(rounded, dtype.type(direction))
            other = abs(Fraction(float(neighbor)) - Fraction(value))
            assert distance <= other
            if distance == other:
                assert int(np.array(rounded).view(f"u{dtype.itemsize}")) % 2 == 0
