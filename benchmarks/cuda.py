"""``--device cuda`` against the link that its bytes go through: an 8B checkpoint in memory, host to GPU and back.

=================== ====================================================================================
part                what is measured
=================== ====================================================================================
``copies``          pinned memory to the GPU, back, and both at once: of the latter, the gigabytes a
                    second in each direction are what a merge can reach
``blocks``          the pipeline of the merge alone: every block of every matrix that changes, from
                    pinned memory to pinned memory
``files``           ``merge_checkpoint`` from /dev/shm to /dev/shm, with and without digests, by the
                    GPU and by numpy; and how many elements the two wrote differently
``resident``        ``merge_resident`` into weights that are on the GPU, in place and beside them
``algebra``         one truncated SVD and one TIES of 4096 x 4096, numpy and GPU
=================== ====================================================================================

The bar is 0.8: gigabytes a second of the checkpoint through the pipeline, over those of both copies at once. What files
cost beyond it is shown beside it. How many elements CPU and GPU wrote differently is counted too, since a fast merge
that differs is no merge. Results: ``benchmarks/results/cuda.json``, written after every part, so that a run that is
cut short keeps what it measured; parts that are left out keep what is there.

``files`` takes three times the size of the checkpoint in ``--scratch``, and that much memory where this is /dev/shm.
Without a GPU it says why and measures nothing. ``--small`` runs all of it on torch's CPU with small shapes, to see
that it works; its figures mean nothing and are not kept.

Usage: ``python benchmarks/cuda.py [--part blocks]... [--gigabytes 16] [--rank 16] [--scratch /dev/shm]
[--results cuda.json] [--small]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from threading import Lock
from typing import Any

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
from lora_registry.device.opening import named, open_cuda, settle
from lora_registry.errors import MachineError
from lora_registry.format.container import Entry
from lora_registry.merge import accelerator
from lora_registry.merge.accelerator import Accelerator
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.kernel import BlockKernel, Room
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.plan import Part
from lora_registry.merge.ranges import Largest
from lora_registry.runtime.resident import merge_resident

RESULTS = Path(__file__).resolve().parent / "results" / "cuda.json"
BAR = 0.8
TINY = Widths(256, 512, 64, 1000)
ROUNDS = 3
PARTS = ("copies", "blocks", "files", "resident", "algebra")


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", action="append", choices=PARTS)
    parser.add_argument("--gigabytes", type=float, default=16.0)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--results", type=Path, default=RESULTS)
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
    size, widths = (4_000_000, TINY) if asked.small else (int(asked.gigabytes * 1e9), EIGHT_B)
    parts = [part for part in PARTS if part in (asked.part or PARTS)]
    needed = size * (33 if "files" in parts else 11) // 10  # the base, what GPU and CPU wrote, and a little
    free = shutil.disk_usage(asked.scratch).free
    if free < needed:
        sys.exit(f"{asked.scratch} has {free:,} bytes free of the {needed:,} that are needed: --gigabytes, --scratch")
    figures: dict[str, Any] = json.loads(asked.results.read_bytes()) if asked.results.exists() else {}
    figures |= {"machine": machine(device), "rank": asked.rank}
    say(json.dumps(figures["machine"]))
    with tempfile.TemporaryDirectory(dir=asked.scratch) as name:
        bench = Bench(Path(name), device, size, widths, asked.rank)
        for part in parts:
            start = time.perf_counter()
            figures |= {part: getattr(bench, part)()}
            say(f"-- {part}: {time.perf_counter() - start:.0f} s")
            if part in ("copies", "blocks", "files"):
                judge(figures)
            if not asked.small:
                asked.results.write_text(json.dumps(figures, indent=1) + "\n")


def say(line: str) -> None:
    """A line at once: a run may be cut short."""
    print(line, flush=True)


def judge(figures: dict[str, Any]) -> None:
    """Hold the merge against the link, as soon as both were measured."""
    if not figures.keys() >= {"copies", "blocks"}:
        return
    reachable = figures["copies"]["both, each direction"]
    reached = {f"blocks, {name}": speed for name, speed in figures["blocks"].items()}
    reached |= {f"files, {name}": speed for name, speed in figures.get("files", {}).get("gb_s", {}).items()}
    figures["of_the_copy"] = {name: speed / reachable for name, speed in reached.items()}
    figures["bar"] = {"asked": BAR, "reached": figures["of_the_copy"]["blocks, in pinned memory"]}
    say(f"bar {BAR}: {figures['bar']['reached']:.2f} of the copy through the pipeline")


class Bench:
    """The parts, each a method.

    Args:
        root: a folder for base, adapter and outputs.
        device: what computes.
        size: bytes of the base, about.
        widths: its shapes.
        rank: of the adapter.
    """

    def __init__(self, root: Path, device: torch.device, size: int, widths: Widths, rank: int) -> None:
        self._root, self._device, self._size, self._widths, self._rank = root, device, size, widths, rank
        self._real = device.type == "cuda"

    @cached_property
    def _base(self) -> Path:
        start = time.perf_counter()
        base: Path = make_base(self._root / "base", self._size, widths=self._widths)
        say(f"-- base: {time.perf_counter() - start:.0f} s")
        return base

    @cached_property
    def _adapter(self) -> Adapter:
        made = make_adapter(self._root / "adapter", self._base, self._rank, ALL_LINEAR, self._widths)
        adapter: Adapter = converter.read(made)[0]
        return adapter

    def copies(self) -> dict[str, float]:
        """GB/s of copies."""
        block = min(accelerator.ELEMENTS * 2, self._size)
        return told("copy", copied(self._device, block, 64 if self._real else 4))

    def blocks(self) -> dict[str, float]:
        """GB/s of a merge without files."""
        return told("merge, blocks", {"in pinned memory": piped(self._device, self._adapter)})

    def files(self) -> dict[str, object]:
        """GB/s of merges of files, and what CPU and GPU wrote differently."""
        adapter, base = self._adapter, self._base
        stored = sum(path.stat().st_size for path in base.glob("*.safetensors"))
        cores = len(os.sched_getaffinity(0))
        speeds: dict[str, float] = {}
        for name, options, workers in (
            ("cuda, no hash", MergeOptions(device="cuda", hashed=False), None),
            (f"cuda, no hash, {cores} workers", MergeOptions(device="cuda", hashed=False), cores),
            ("cuda", MergeOptions(device="cuda"), None),
            ("cpu, no hash", MergeOptions(hashed=False), None),
            ("cpu", MergeOptions(), None),
        ):
            out = self._root / options.device
            work = partial(merge_checkpoint, adapter, base, out, options, workers=workers, durable=False)
            seconds = median(work, before=partial(shutil.rmtree, out, ignore_errors=True), warm=False)
            speeds |= told("merge, files", {name: stored / 1e9 / seconds})
        off = differing(adapter, self._root / "cuda", self._root / "cpu")
        say(f"CPU and GPU wrote differently: {off}")
        return {"bytes": stored, "gb_s": speeds, "differing": off}

    def resident(self) -> dict[str, float]:
        """GB/s of merging into weights that are there already: the bytes of those that change."""
        checkpoint = open_base(self._base)
        weights = {name: from_tensor(checkpoint.tensor(name), self._device) for name in checkpoint.names()}
        changed = sum(weights[target.name].nbytes for target in self._adapter)

        def go(in_place: bool) -> None:
            merge_resident(self._adapter, weights, in_place=in_place)
            settle(self._device)

        speeds = {name: changed / 1e9 / median(partial(go, name == "in place")) for name in ("in place", "beside")}
        return told("merge, resident", speeds)

    def algebra(self) -> dict[str, float]:
        """Seconds of a truncated SVD and of a TIES of three matrices."""
        taken = algebra(4096 if self._real else 500)
        for name, seconds in taken.items():
            say(f"{name:42} {seconds:8.3f} s")
        return taken


def told(what: str, speeds: dict[str, float]) -> dict[str, float]:
    """The same, printed."""
    for name, speed in speeds.items():
        say(f"{f'{what}, {name}':42} {speed:8.2f} GB/s")
    return speeds


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


def median(work: Callable[[], object], *, before: Callable[[], object] = int, warm: bool = True) -> float:
    """Seconds of ``work``, the median of some rounds, after one that warms up if so asked; ``before`` is not timed."""
    if warm:
        work()
    taken = []
    for _ in range(ROUNDS):
        before()
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


def piped(device: torch.device, adapter: Adapter) -> float:
    """GB/s of a merge without files: kernels and blocks of every matrix in turn, by threads as a merge has them."""
    processor = Accelerator(device)
    work = []
    for target in adapter:
        assert target.shape is not None
        size, row = int(np.prod(target.shape)), target.shape[1]
        part = Part(target.name, Entry("BF16", target.shape, 0, 2 * size), target.name, (target,))
        step = processor.elements(part) // row * row
        work += [(part, start, min(start + step, size)) for start in range(0, size, step)]
    largest = max(stop - start for _, start, stop in work)
    threads = 8
    with processor.ready(Largest(2 * largest, 2 * largest, largest)):
        slots = [(processor.buffer(2 * largest), processor.buffer(2 * largest), Room(1)) for _ in range(threads)]
        for read, _, _ in slots:
            read[:] = np.resize(np.arange(1, 60, dtype=np.uint8), read.size)

        def all_threads() -> None:
            kernels: dict[str, BlockKernel] = {}
            making, left = Lock(), iter(work)

            def go(thread: int) -> None:
                read, out, room = slots[thread]
                for part, start, stop in left:  # one iterator: each thread takes what is next
                    with making:
                        if part.name not in kernels:
                            kernels[part.name] = processor.kernel(part, "BF16", lambda start, stop: np.empty(0))
                    size = 2 * (stop - start)
                    kernels[part.name].run(start, stop, read[:size], out[:size], room)

            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(go, range(threads)))

        seconds = median(all_threads)
    return sum(2 * (stop - start) for _, start, stop in work) / 1e9 / seconds


def differing(adapter: Adapter, gpu: Path, cpu: Path) -> dict[str, float]:
    """The share of the elements that two merges into bfloat16 wrote differently, and by how many ulps at most."""
    one, other = open_base(gpu), open_base(cpu)
    count = total = most = 0
    for target in adapter:
        first, second = (each.array(target.name).view(np.int16).reshape(-1) for each in (one, other))
        places = np.flatnonzero(first != second)
        off = np.abs(ordered(first[places]) - ordered(second[places]))  # both zeros are one number
        count, total = count + int(np.count_nonzero(off)), total + first.size
        most = max(most, int(off.max(initial=0)))
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
