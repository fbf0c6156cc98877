"""The engine with a device: torch's CPU stands for it, which runs the same code but for the streams.

What only a GPU can show is in ``tests/device/test_cuda.py``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from device_blocks import RARE, blocks, ordered, weights
from device_targets import TARGETS
from golden_vectors import write_checkpoint
from quantized_merges import OTHER, lora
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.device.pipeline import Pipeline
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, InvalidInputError, MachineError
from lora_registry.format.container import Entry
from lora_registry.merge import accelerator
from lora_registry.merge.accelerator import AcceleratedKernel
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.kernel import Room
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.plan import Part
from lora_registry.ops.arrays import as_bytes, from_array, round_to
from lora_registry.ops.fidelity import fidelity

CPU = torch.device("cpu")
CUDA = MergeOptions(device="cuda")


@pytest.fixture
def as_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """``cuda`` computes with torch on the CPU, in blocks that a small test has several of."""
    monkeypatch.setattr(accelerator, "open_cuda", lambda: CPU)
    monkeypatch.setattr(accelerator, "ELEMENTS", 40_000)


@pytest.mark.parametrize("stored", ["BF16", "F16", "F32", "F64"])
@pytest.mark.parametrize("name", [name for name in TARGETS if name != "full"])
def test_every_kind_gives_what_numpy_gives(name: str, stored: str) -> None:
    """At most one ulp on hardly any element, and the same figures, in blocks and in runs of a block."""
    target = TARGETS[name]
    (wanted, told), (made, measured) = blocks(target, weights(target, stored), stored, most=9000, steps=3)
    if stored == "F64":  # of which no type is wider: sums in another order show
        assert np.abs(made - wanted).max() <= 1e-14 * np.abs(wanted).max()
    else:
        off = np.abs(ordered(made) - ordered(wanted))
        assert off.max() <= 1
        assert np.count_nonzero(off) <= RARE * off.size + 1
    assert told is not None
    assert measured is not None
    assert measured.elements == told.elements
    ours, theirs = fidelity([measured]), fidelity([told])
    assert ours.cosine == pytest.approx(theirs.cosine, abs=1e-5)
    assert ours.delta_ratio == pytest.approx(theirs.delta_ratio, rel=1e-5)
    assert ours.relative_error == pytest.approx(theirs.relative_error, rel=1e-3, abs=1e-7)
    assert ours.unchanged_fraction == pytest.approx(theirs.unchanged_fraction, abs=RARE)


@pytest.mark.parametrize(
    ("stored", "written"),
    [
        ("BF16", "F32"),
        ("F32", "BF16"),
        ("F32", "F16"),
        ("F64", "BF16"),
        ("F64", "F16"),
        ("BF16", "F64"),
        ("F16", "BF16"),
    ],
)
@pytest.mark.parametrize("changed", [True, False])
def test_every_conversion_is_rounded_once(stored: str, written: str, changed: bool) -> None:
    """From one type into another, with a change or without; a conversion is the same to the bit."""
    target = TARGETS["linear"]
    (wanted, _), (made, figures) = blocks(target if changed else None, weights(target, stored), written, steps=2)
    off = np.abs(ordered(made) - ordered(wanted))
    assert off.max() <= changed
    assert np.count_nonzero(off) <= 20 * RARE * off.size
    assert (figures is None) is not changed


@pytest.mark.parametrize("written", ["F8_E4M3", "F8_E5M2", "BF16", "F16"])
def test_short_types_are_correctly_rounded(written: str) -> None:
    """float8 too, against the correctly rounded result in float64."""
    rng = np.random.default_rng(0)
    shape = (1500, 700)
    weight = round_to(rng.normal(size=shape), written)
    A, B = rng.normal(size=(16, 700)).astype(np.float32), (rng.normal(size=(1500, 16)) * 1e-4).astype(np.float32)
    factors = {"A": from_array(A), "B": from_array(B)}
    target = Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=shape, scale=2.0, tensors=factors)
    exact = round_to(weight.astype(np.float64) + 2.0 * (B.astype(np.float64) @ A.astype(np.float64)), written)
    _, (made, _) = blocks(target, weight, written, most=300_000)
    off = np.abs(ordered(made) - ordered(exact.reshape(-1)))
    assert off.max() <= 1
    assert np.count_nonzero(off) <= RARE * off.size


@pytest.mark.parametrize("written", ["F8_E4M3", "F8_E5M2", "F16"])
def test_what_leaves_the_range_is_refused_as_numpy_refuses_it(written: str) -> None:
    """torch clamps to the largest float8; that would be a wrong weight without a word."""
    target = TARGETS["linear"]
    weight = round_to(np.full((300, 200), 440.0 if written == "F8_E4M3" else 57_000.0), written)
    factors = {**target.tensors, "B": from_array(np.full((300, 8), 1e6, np.float32))}
    far = Target(name="w", kind=target.kind, layout=target.layout, shape=target.shape, tensors=factors)
    with pytest.raises(InvalidInputError) as refused:
        blocks(far, weight, written)  # numpy's, which comes first
    pipeline = Pipeline(CPU)
    entry = Entry(written, weight.shape, 0, weight.nbytes)
    with pipeline.ready(weight.nbytes, weight.nbytes, weight.size):
        device = AcceleratedKernel(pipeline, Part("w", entry, "w", (far,)), written, lambda start, stop: weight)
        out = np.empty(weight.nbytes, np.uint8)
        with pytest.raises(InvalidInputError) as also, np.errstate(all="ignore"):
            device.run(0, weight.size, np.frombuffer(as_bytes(weight), np.uint8).copy(), out, Room(weight.size))
    assert str(also.value) == str(refused.value)


def test_infinities_of_the_base_stay_and_new_ones_are_refused() -> None:
    """As on the CPU: what is broken in the base is not the adapter's fault."""
    target = TARGETS["linear"]
    weight = weights(target, "BF16")
    weight[5, 7], weight[6, 8] = np.inf, np.nan
    (wanted, _), (made, _) = blocks(target, weight, "BF16", steps=3)
    assert np.array_equal(wanted.view(np.uint16)[:10_000], made.view(np.uint16)[:10_000])
    assert np.isinf(made.astype(np.float32)).sum() == 1
    factors = {**target.tensors, "A": from_array(np.full((8, 200), np.nan, np.float32))}
    broken = Target(name="w", kind=target.kind, layout=target.layout, shape=target.shape, tensors=factors)
    with pytest.raises(InvalidInputError, match="not finite at element 0 although the base is"):
        blocks(broken, weights(target, "BF16"), "BF16")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Two shards with a tensor for most kinds of target, and one that stays as it is."""
    folder = tmp_path / "base"
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.normal(size=target.shape or (700, 64)).astype(ml_dtypes.bfloat16) for name, target in TARGETS.items()
    }
    arrays["stays"] = rng.normal(size=(900, 700)).astype(ml_dtypes.bfloat16)
    names = list(arrays)
    places = {"model-1.safetensors": names[:7], "model-2.safetensors": names[7:]}
    for file, held in places.items():
        save_file({name: arrays[name] for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in places.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def adapter() -> Adapter:
    """Every kind at once, each on the tensor of its name."""
    return Adapter(
        targets=tuple(
            Target(
                name=name,
                kind=target.kind,
                layout=target.layout,
                shape=target.shape,
                scale=target.scale,
                tensors=target.tensors,
                rows=target.rows,
            )
            for name, target in TARGETS.items()
        )
    )


@pytest.mark.usefixtures("as_cuda")
@pytest.mark.parametrize("dtype", [None, "F32"])
def test_a_merge_is_the_cpus_but_for_an_ulp(base: Path, adapter: Adapter, tmp_path: Path, dtype: str | None) -> None:
    """All kinds in one checkpoint, any number of workers, hashed and not; the receipt says where it was computed."""
    merge_checkpoint(adapter, base, tmp_path / "cpu", MergeOptions(dtype=dtype))
    receipt = merge_checkpoint(adapter, base, tmp_path / "out", MergeOptions(dtype=dtype, device="cuda"))
    assert receipt.options["device"] == "cuda"
    assert {record.name: record.digest for record in receipt.outputs} == {
        path.name: Digest.of_file(path) for path in (tmp_path / "out").iterdir() if path.name != "loreg-receipt.json"
    }
    one, other = open_base(tmp_path / "cpu"), open_base(tmp_path / "out")
    off = {name: np.abs(ordered(one.array(name)) - ordered(other.array(name))) for name in one.names()}
    assert off["stays"].max() == off["full"].max() == 0
    assert max(int(each.max()) for each in off.values()) <= 1
    assert sum(np.count_nonzero(each) for each in off.values()) <= RARE * sum(each.size for each in off.values())
    for workers, hashed in ((1, True), (7, False)):
        options = MergeOptions(dtype=dtype, device="cuda", hashed=hashed)
        merge_checkpoint(adapter, base, tmp_path / f"out{workers}", options, workers=workers)
        for path in (tmp_path / "out").glob("*.safetensors"):
            assert path.read_bytes() == (tmp_path / f"out{workers}" / path.name).read_bytes()


@pytest.mark.usefixtures("as_cuda")
@pytest.mark.parametrize("name", ["nf4-double", "gptq-4", "fp8", "int8"])
def test_quantized_bases(name: str, tmp_path: Path) -> None:
    """Their values go through the device, and come out the same; what is quantized again stays with the CPU."""
    weight = write_checkpoint(tmp_path / "base", name, **OTHER)
    change = lora("m.weight", weight.shape)
    for requantize in (False, True):
        made = []
        for device in ("cpu", "cuda"):
            out = tmp_path / f"{device}-{requantize}"
            options = MergeOptions(device=device, requantize=requantize)  # type: ignore[arg-type]
            merge_checkpoint(change, tmp_path / "base", out, options)
            made.append(open_base(out))
        one, other = made
        assert set(one.names()) == set(other.names())
        for tensor in one.names():
            if requantize or tensor != "m.weight":
                assert one.tensor(tensor).data == other.tensor(tensor).data
        if not requantize:
            off = np.abs(ordered(one.array("m.weight")) - ordered(other.array("m.weight")))
            assert off.max() <= 1
            assert np.count_nonzero(off) <= RARE * off.size + 1


KILLED = """
import os, sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
from device_blocks import RARE, blocks, ordered, weights
from device_targets import TARGETS
from lora_registry.merge import accelerator, journal
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.adapter import Adapter
from dataclasses import replace
accelerator.open_cuda = lambda: torch.device("cpu")
accelerator.ELEMENTS = 40_000
journal.SECONDS = 0.0
adapter = Adapter(targets=tuple(replace(target, name=name) for name, target in TARGETS.items()))
def progress(done, total):
    if done > total / 2:
        os._exit(9)
merge_checkpoint(adapter, Path({base!r}), Path({out!r}), MergeOptions(device="cuda"), workers=2, progress=progress)
"""


@pytest.mark.usefixtures("as_cuda")
def test_a_killed_merge_goes_on_with_the_same_device_only(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """The journal holds its blocks; the CPU's blocks are others, and its bytes may be."""
    whole = merge_checkpoint(adapter, base, tmp_path / "whole", CUDA)
    script = KILLED.format(path=[str(Path(__file__).parents[1] / "models")], base=str(base), out=str(tmp_path / "out"))
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 9
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConflictError, match="options changed since"):
        merge_checkpoint(adapter, base, tmp_path / "out", resume=True)
    resumed = merge_checkpoint(adapter, base, tmp_path / "out", CUDA, resume=True)
    assert resumed.outputs == whole.outputs
    assert [record.name for record in resumed.tensors] == [record.name for record in whole.tensors]


@pytest.mark.usefixtures("as_cuda")
@pytest.mark.parametrize("when", ["at once", "in the middle"])
def test_a_device_that_fails_leaves_nothing(
    base: Path, adapter: Adapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """One line that says what to do, and neither output nor staging folder; other errors stay what they are."""
    calls = []

    def fails(*arguments: object) -> None:
        calls.append(arguments)
        if when == "at once" or len(calls) > 3:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nmore\nlines")

    monkeypatch.setattr(accelerator, "make_run", fails)
    with pytest.raises(MachineError, match=r"^cpu failed: CUDA error: an illegal memory access.*compute on the CPU$"):
        merge_checkpoint(adapter, base, tmp_path / "out", CUDA)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_little_memory_halves_what_is_computed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once; where half is too much as well, the line says how many bytes are needed."""
    allocate = Pipeline._bytes
    limit = 200_000

    def limited(self: Pipeline, size: int) -> torch.Tensor:
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return allocate(self, size)

    monkeypatch.setattr(Pipeline, "_bytes", limited)
    pipeline = Pipeline(CPU)
    with pipeline.ready(1000, 1000, 10_000):
        assert pipeline.elements == 5_000
        target = TARGETS["linear"]
        wide = Part("w", Entry("BF16", (2, 6000), 0, 24_000), "w", (target,))
        with pytest.raises(MachineError, match="w: a row of 6,000 elements needs more memory"):
            AcceleratedKernel(pipeline, wide, "BF16", lambda start, stop: np.empty(0))
    with pytest.raises(MachineError, match=r"needs 668,000 bytes of memory"), pipeline.ready(1000, 1000, 40_000):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_line_says_why(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Before anything is written."""
    with pytest.raises(MachineError, match=r"built without CUDA|CUDA does not start"):
        merge_checkpoint(adapter, base, tmp_path / "out", CUDA)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_merging_on_the_cpu_needs_no_torch(base: Path, tmp_path: Path) -> None:
    """Where torch cannot be imported, a merge works, and ``cuda`` names the package."""
    script = f"""
import sys
from pathlib import Path
sys.modules["torch"] = None
from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.errors import MachineError
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
value = Tensor("F32", (900,), bytes(3600))
target = Target(name="bias", kind=Kind.BIAS, layout=("out",), shape=(900,), tensors={{"delta": value}})
adapter = Adapter(targets=(target,))
merge_checkpoint(adapter, Path({str(base)!r}), Path({str(tmp_path / "out")!r}))
try:
    merge_checkpoint(adapter, Path({str(base)!r}), Path({str(tmp_path / "none")!r}), MergeOptions(device="cuda"))
except MachineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout == "this needs the package 'torch': pip install 'loreg[torch]'\n"
