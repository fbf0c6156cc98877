"""``--device cuda`` against the link that its bytes go through: an 8B checkpoint in memory, host to GPU and back.

=================== ====================================================================================
copies              pinned memory to the GPU, back, and both at once: of the latter, the gigabytes a
                    second in each direction are what a merge can reach
blocks              the pipeline of the merge alone, from pinned memory to pinned memory
files               ``merge_checkpoint`` from /dev/shm to /dev/shm, with and without digests
cpu                 the same by numpy
resident            ``merge_resident`` into weights that are on the GPU, in place and beside them
algebra             one truncated SVD and one TIES of 4096 x 4096, numpy and GPU
=================== ====================================================================================

The bar is 0.8: gigabytes a second of the checkpoint through the pipeline, over those of both copies at once. What files
cost beyond it is shown beside it. How many elements CPU and GPU wrote differently is counted too, since a fast merge
that differs is no merge. Results: ``benchmarks/results/cuda.json``.

Without a GPU it says why and measures nothing. ``--small`` runs all of it on torch's CPU with small shapes, to see
that it works; its figures mean nothing and are not kept.

Usage: ``python benchmarks/cuda.py [--gigabytes 16] [--rank 16] [--scratch /dev/shm] [--small]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from checkpoints import ALL_LINEAR, EIGHT_B, Widths, make_adapter, make_base
from loreg_converters.peft import converter

from lora_registry.adapter import Adapter
from lora_registry.algebra.arithmetic import computed_on
from lora_registry.algebra.dense import approximate
from lora_registry.algebra.election import Convention, ties
from lora_registry.algebra.truncation import Truncation
from lora_registry.device import dense
from lora_registry.device.elements import from_tensor
from lora_registry.device.opening import named, open_cuda
from lora_registry.errors import MachineError
from lora_registry.format.container import Entry
from lora_registry.merge import accelerator
from lora_registry.merge.accelerator import Accelerator
from lora_registry.merge.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.kernel import Room
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.plan import Part
from lora_registry.merge.ranges import Largest
from lora_registry.runtime.resident import merge_resident

RESULTS = Path(__file__).resolve().parent / "results" / "cuda.json"
BAR = 0.8
TINY = Widths(256, 512, 64, 1000)
ROUNDS = 3


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=16.0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    try:
        device = torch.device("cpu") if asked.small else open_cuda()
    except MachineError as error:
        print(f"skipped: {error}")
        return
    if asked.small:
        for module in (accelerator, dense):
            vars(module)["open_cuda"] = lambda: device
    with tempfile.TemporaryDirectory(dir=asked.scratch) as name:
        size, widths = (4_000_000, TINY) if asked.small else (int(asked.gigabytes * 1e9), EIGHT_B)
        figures = run(Path(name), device, size, widths, asked.rank)
    if not asked.small:
        RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def run(root: Path, device: torch.device, size: int, widths: Widths, rank: int) -> dict[str, object]:
    """Everything, in turn."""
    figures: dict[str, object] = {"machine": machine(device), "rank": rank}
    print(json.dumps(figures["machine"]))
    block = min(accelerator.ELEMENTS * 2, size)
    copies = copied(device, block, 64 if device.type == "cuda" else 4)
    figures["copies_gb_s"] = copies
    for name, speed in copies.items():
        print(f"copy {name:24} {speed:8.1f} GB/s")
    base = make_base(root / "base", size, widths=widths)
    adapter = converter.read(make_adapter(root / "adapter", base, rank, ALL_LINEAR, widths))[0]
    stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    reachable = copies["both, each direction"]
    speeds = {"blocks in pinned memory": piped(device, adapter, block, 200 if device.type == "cuda" else 8)}
    cores = len(os.sched_getaffinity(0))
    for name, options, workers in (
        ("files, no hash", MergeOptions(device="cuda", hashed=False), None),
        (f"files, no hash, {cores} workers", MergeOptions(device="cuda", hashed=False), cores),
        ("files", MergeOptions(device="cuda"), None),
        ("files, cpu, no hash", MergeOptions(hashed=False), None),
        ("files, cpu", MergeOptions(), None),
    ):
        speeds[name] = stored / 1e9 / median(partial(merged, adapter, base, root / "out", options, workers))
    speeds |= resident(device, adapter, base)
    for name, speed in speeds.items():
        print(f"merge, {name:25} {speed:8.2f} GB/s  {speed / reachable:6.2f} of the copy")
    figures |= {"bytes": stored, "merge_gb_s": speeds, "of_the_copy": {n: s / reachable for n, s in speeds.items()}}
    ratio = speeds["blocks in pinned memory"] / reachable
    figures["bar"] = {"asked": BAR, "reached": ratio, "files_reach": speeds["files, no hash"] / reachable}
    print(f"bar {BAR}: {ratio:.2f} through the pipeline, {speeds['files, no hash'] / reachable:.2f} with files")
    figures["differing"] = differing(adapter, base, root)
    print(f"CPU and GPU wrote differently: {figures['differing']}")
    figures["algebra_s"] = taken = algebra(4096 if device.type == "cuda" else 500)
    for name, seconds in taken.items():
        print(f"{name:32} {seconds:8.3f} s")
    return figures


def machine(device: torch.device) -> dict[str, object]:
    """What was measured on."""
    driver = Path("/proc/driver/nvidia/version")
    return {
        "device": named(device),
        "driver": driver.read_text().splitlines()[0] if driver.exists() else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
    }


def settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median(work: Callable[[], object]) -> float:
    """Seconds of the median of some rounds, after one that warms up."""
    work()
    taken = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def copied(device: torch.device, block: int, count: int) -> dict[str, float]:
    """GB/s of ``count`` copies of ``block`` bytes: up, down, and both at once in each direction."""
    pinned = device.type == "cuda"
    host = [torch.ones(block, dtype=torch.uint8, pin_memory=pinned) for _ in range(4)]
    there = [torch.ones(block, dtype=torch.uint8, device=device) for _ in range(4)]
    streams = [torch.cuda.Stream(device) for _ in range(2)] if pinned else []

    def go(up: bool, down: bool) -> None:
        for number in range(count):
            side = number % 2
            if up:
                with torch.cuda.stream(streams[0] if pinned else None):
                    there[side].copy_(host[side], non_blocking=True)
            if down:
                with torch.cuda.stream(streams[1] if pinned else None):
                    host[2 + side].copy_(there[2 + side], non_blocking=True)
        settle(device)

    total = block * count / 1e9
    return {
        "to the GPU": total / median(lambda: go(True, False)),
        "from the GPU": total / median(lambda: go(False, True)),
        "both, each direction": total / median(lambda: go(True, True)),
    }


def piped(device: torch.device, adapter: Adapter, block: int, count: int) -> float:
    """GB/s of a merge without files: blocks of one matrix again and again, from pinned memory to pinned memory."""
    target = max(adapter, key=lambda each: int(np.prod(each.shape or (0,))))
    assert target.shape is not None
    elements = min(block // 2 // target.shape[1], target.shape[0]) * target.shape[1]
    processor = Accelerator(device)
    part = Part(target.name, Entry("BF16", target.shape, 0, 2 * int(np.prod(target.shape))), target.name, (target,))
    threads = 8
    with processor.ready(Largest(2 * elements, 2 * elements, elements)):
        kernel = processor.kernel(part, "BF16", lambda start, stop: np.empty(0))
        slots = [(processor.buffer(2 * elements), processor.buffer(2 * elements), Room(1)) for _ in range(threads)]
        for read, _, _ in slots:
            read[:] = np.resize(np.arange(1, 60, dtype=np.uint8), read.size)

        def go(thread: int) -> None:
            read, out, room = slots[thread]
            for _ in range(count // threads):
                kernel.run(0, elements, read, out, room)

        def all_threads() -> None:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(go, range(threads)))

        seconds = median(all_threads)
    return 2 * elements * (count // threads) * threads / 1e9 / seconds


def merged(adapter: Adapter, base: Path, out: Path, options: MergeOptions, workers: int | None = None) -> None:
    """One merge of files; the last one's output makes room first."""
    if out.exists():
        shutil.rmtree(out)
    merge_checkpoint(adapter, base, out, options, workers=workers, durable=False)


def resident(device: torch.device, adapter: Adapter, base: Path) -> dict[str, float]:
    """GB/s of merging into weights that are there already: the bytes of those that change."""
    checkpoint = open_base(base)
    weights = {name: from_tensor(checkpoint.tensor(name), device) for name in checkpoint.names()}
    changed = sum(weights[target.name].nbytes for target in adapter)

    def go(in_place: bool) -> None:
        merge_resident(adapter, weights, in_place=in_place)
        settle(device)

    return {
        "resident, in place": changed / 1e9 / median(lambda: go(True)),
        "resident, beside": changed / 1e9 / median(lambda: go(False)),
    }


def differing(adapter: Adapter, base: Path, root: Path) -> dict[str, float]:
    """The share of the elements that CPU and GPU wrote differently, and by how many ulps at most."""
    merged(adapter, base, root / "gpu", MergeOptions(device="cuda", hashed=False))
    merged(adapter, base, root / "out", MergeOptions(hashed=False))
    one, other = open_base(root / "gpu"), open_base(root / "out")
    count = total = most = 0
    for target in adapter:
        first, second = (ordered(each.array(target.name).view(np.int16)) for each in (one, other))
        off = np.abs(first - second)
        count, total, most = count + int(np.count_nonzero(off)), total + off.size, max(most, int(off.max()))
    return {"share": count / total, "ulps": most}


def ordered(bits: np.ndarray) -> np.ndarray:
    """Bits of bfloat16 as integers that count ulps."""
    wide = bits.astype(np.int32)
    return np.where(wide < 0, -(wide & 0x7FFF), wide)


def algebra(side: int) -> dict[str, float]:
    """Seconds of a truncated SVD and of a TIES of three matrices, by numpy and on the device."""
    random = np.random.default_rng(0)
    changes = [random.normal(size=(side, side)).astype(np.float32) for _ in range(3)]
    found = {}
    for name in ("cpu", "cuda"):
        with computed_on(name):
            for what, work in (
                ("SVD to rank 64", lambda: approximate(changes[0], Truncation(rank=64))),
                ("TIES of three", lambda: ties(changes, 0.2, [1.0, 1.0, 1.0], Convention.PEFT)),
            ):
                found[f"{what}, {side} x {side}, {name}"] = median(work)
    return found


if __name__ == "__main__":
    main()
