"""What adapters cost at run time under ONNX Runtime, beside the base: merged, switched between requests, batched.

SmolLM2-135M as loreg exports it, float32, adapters on all of its 210 linear layers; one process, all sessions open,
the contestants in turn for many rounds. Medians and ratios are printed and written to
``benchmarks/results/switch.json``.

===================== ===============================================================================
base                  the exported model
merged                the same with an adapter merged into the file; the LoRA paper's claim is a ratio of 1
merged at load        the same from the base's file, ``lora_registry.runtime.session``
switchable, none      the switchable model with no adapter active
switchable, rank r    with one, from an ``AdapterPool``
alternating, rank r   the same with another adapter than in the run before
batched, rank r       four rows with four adapters, beside four rows of the base
===================== ===============================================================================

Usage: ``python benchmarks/switch.py [--rounds N] [--onnx BASE.onnx] [--threads N] [--scratch FOLDER]``
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.slots.insert import add_slots, slots_of
from lora_registry.onnx.slots.manifest import Slot
from lora_registry.ops.arrays import from_array
from lora_registry.runtime import ort
from lora_registry.runtime.adapter_pool import AdapterPool
from lora_registry.runtime.batched import BatchedModel
from lora_registry.runtime.export import export_model
from lora_registry.runtime.generate import Decoder
from lora_registry.runtime.session import session

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "switch.json"
RANKS = (8, 16, 64)
SEQUENCES = (1, 128)
BATCH = 4
PATTERN = "*_proj.weight"

sys.path.insert(0, str(HERE.parent / "examples" / "quickstart"))


def adapter_for(slots: list[Slot], rank: int, seed: int) -> Adapter:
    """A random adapter with a target for each slot."""
    random = np.random.default_rng(seed)

    def target(slot: Slot) -> Target:
        a = random.standard_normal((rank, slot.width), dtype=np.float32) * np.float32(0.01)
        b = random.standard_normal((slot.height, rank), dtype=np.float32) * np.float32(0.01)
        tensors = {"A": from_array(a), "B": from_array(b)}
        return Target(name=slot.target, kind=Kind.LINEAR, layout=slot.layout, shape=slot.shape, tensors=tensors)

    return Adapter(targets=tuple(target(slot) for slot in slots))


def inputs_for(opened: Any, batch: int, sequence: int) -> dict[str, Any]:
    """Random tokens and an empty cache."""
    random = np.random.default_rng(sequence)
    tokens = {
        "input_ids": random.integers(3, 90, size=(batch, sequence)),
        "attention_mask": np.ones((batch, sequence), np.int64),
        "position_ids": np.tile(np.arange(sequence), (batch, 1)),
    }
    known = {value.name for value in opened.get_inputs()}
    return {name: array for name, array in tokens.items() if name in known} | dict(Decoder(opened).empty(batch).past)


def contest(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median of each in milliseconds; all of them run once a round, in an order that turns."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    names = list(contestants)
    for name in names:
        contestants[name]()
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            contestants[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(each) for name, each in times.items()}


class Scene:
    """Every session that takes part."""

    def __init__(self, base: Path, scratch: Path, threads: int | None) -> None:
        switchable, batched = scratch / "switchable.onnx", scratch / "batched.onnx"
        add_slots(base, switchable, patterns=[PATTERN])
        add_slots(base, batched, patterns=[PATTERN], batched=True)
        self.slots = list(slots_of(switchable).slots.values())
        self.base = ort.open_session(base, threads=threads)
        one = adapter_for(self.slots, RANKS[0], 0)
        merge_onnx(one, base, scratch / "merged.onnx")
        self.merged = ort.open_session(scratch / "merged.onnx", threads=threads)
        self.at_load = session(base, [(one, 1.0)], threads=threads)
        self.pool = AdapterPool(switchable, threads=threads, capacity=4 << 30)
        self.batched = BatchedModel(batched, threads=threads)
        for rank in RANKS:
            for seed in (1, 2):
                self.pool.add(f"{rank}.{seed}", adapter_for(self.slots, rank, seed))
        self._turn = 0

    def alternating(self, rank: int) -> str:
        """Another adapter than the last time."""
        self._turn += 1
        return f"{rank}.{1 + self._turn % 2}"


def single(scene: Scene, sequence: int, rounds: int) -> dict[str, float]:
    """One row."""
    inputs = inputs_for(scene.base, 1, sequence)
    contestants: dict[str, Callable[[], object]] = {
        "base": lambda: scene.base.run(["logits"], inputs),
        "merged": lambda: scene.merged.run(["logits"], inputs),
        "merged at load": lambda: scene.at_load.run(["logits"], inputs),
        "switchable, none": lambda: scene.pool.run(inputs, outputs=["logits"]),
    }
    for rank in RANKS:
        contestants[f"switchable, rank {rank}"] = lambda rank=rank: scene.pool.run(
            inputs, f"{rank}.1", outputs=["logits"]
        )
        contestants[f"alternating, rank {rank}"] = lambda rank=rank: scene.pool.run(
            inputs, scene.alternating(rank), outputs=["logits"]
        )
    return contest(contestants, rounds)


def rows(scene: Scene, sequence: int, rounds: int) -> dict[str, float]:
    """Four rows with an adapter of their own each, rank by rank, since the stacks of one rank are loaded at a time."""
    inputs = inputs_for(scene.base, BATCH, sequence)
    found: dict[str, float] = {}
    for rank in RANKS:
        scene.batched.load({str(seed): adapter_for(scene.slots, rank, seed) for seed in range(BATCH)})
        chosen = [str(seed) for seed in range(BATCH)]
        measured = contest(
            {
                "base": lambda: scene.base.run(["logits"], inputs),
                "batched": lambda chosen=chosen: scene.batched.run(inputs, chosen, outputs=["logits"]),
            },
            rounds,
        )
        found[f"base beside rank {rank}"] = measured["base"]
        found[f"batched, rank {rank}"] = measured["batched"]
    return found


def switch_cost(scene: Scene, rounds: int) -> dict[str, float]:
    """Milliseconds to gather what a run is fed for an adapter, which is all that switching does."""
    turns = {f"feeds, rank {rank}": lambda rank=rank: scene.pool.feeds(scene.alternating(rank)) for rank in RANKS}
    return contest(turns, 10 * rounds)


def measure(base: Path, scratch: Path, rounds: int, threads: int | None) -> dict[str, object]:
    """All figures, printed as they come."""
    scene = Scene(base, scratch, threads)
    record: dict[str, object] = {"targets": len(scene.slots)}
    for sequence in SEQUENCES:
        alone, together = single(scene, sequence, rounds), rows(scene, sequence, rounds)
        ratios = {name: each / alone["base"] for name, each in alone.items()}
        for rank in RANKS:
            ratios[f"batched, rank {rank}"] = together[f"batched, rank {rank}"] / together[f"base beside rank {rank}"]
        beyond = {rank: alone[f"alternating, rank {rank}"] - alone[f"switchable, rank {rank}"] for rank in RANKS}
        record[f"sequence {sequence}"] = {
            "median_ms": {**alone, **together},
            "times_base": ratios,
            "switch_beyond_the_run_ms": {str(rank): each for rank, each in beyond.items()},
        }
        print(f"\nsequence {sequence}\n{'':24} {'median ms':>10} {'x base':>8}")
        for name, ratio in ratios.items():
            print(f"{name:24} {({**alone, **together})[name]:10.2f} {ratio:8.2f}")
        print("switching, beyond the run: " + ", ".join(f"rank {rank} {each:+.2f} ms" for rank, each in beyond.items()))
    record["feeds_ms"] = switch_cost(scene, rounds)
    print("\n" + "\n".join(f"{name:24} {each:10.3f} ms" for name, each in switch_cost(scene, rounds).items()))
    return record


def main() -> None:
    """Parse the command line, run the contest, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--onnx", type=Path, help="SmolLM2 as `loreg export` writes it; made where it is not given")
    parser.add_argument("--threads", type=int, help="threads within an operator")
    parser.add_argument("--scratch", type=Path, help="where three models of half a gigabyte go for the time of the run")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=options.scratch) as place:
        base = options.onnx
        if base is None:
            import prepare

            base = Path(place) / "base.onnx"
            export_model(prepare.prepare(prepare.SMOLLM2), base)
        figures = measure(base, Path(place), options.rounds, options.threads)
    print(f"\n{os.cpu_count()} processors, load {load:.1f} before and {os.getloadavg()[0]:.1f} after; medians")
    record = {
        "rounds": options.rounds,
        "machine": {
            "processors": os.cpu_count(),
            "arch": platform.machine(),
            "load_before": load,
            "load_after": os.getloadavg()[0],
        },
        "onnxruntime": onnxruntime.__version__,
        "figures": figures,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
