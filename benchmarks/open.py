"""Opening an adapter of a gigabyte and validating all of its header, beside what a user would do instead.

One process, warm page cache, the contestants in turn for many rounds; medians and ratios are printed and
written to ``benchmarks/results/open.json``. The data of the files is a hole on the disk, since no contestant
looks at it; headers are those of real adapters.

===================== ===============================================================================
loreg                 ``read_adapter``: checks every rule that needs no data, R-001 to R-034 and
                      R-036 on, and gives the adapter with all tensors mapped
safetensors           ``safe_open``, ``keys()``, ``metadata()``: checks offsets and dtypes
safetensors + json    the same, and ``json.loads`` of loreg's document; checks nothing in it
PEFT's way            the same adapter as PEFT keeps it: ``json.load`` of adapter_config.json,
                      ``safe_open``, ``keys()``, and the shape of every tensor
===================== ===============================================================================

Bytes read are counted below the file object, those of the memory map in ``/proc/self/smaps``.

Usage: ``python benchmarks/open.py [--rounds N]``
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
from dataclasses import dataclass
from pathlib import Path

import safetensors
from safetensors import safe_open

from lora_registry.adapter import Adapter, Kind
from lora_registry.format.container import open_container
from lora_registry.format.reader import SUFFIX, read_adapter

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "open.json"

sys.path.insert(0, str(HERE.parent / "tests" / "models"))
from large_adapters import every_linear, many_experts, new_head, write_hole, write_native  # noqa: E402
from reading_cost import Tracer, resident  # noqa: E402

ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "every linear layer of Llama 3 8B, rank 208": every_linear,
    "a new head of Llama 3 8B, one block at rank 16": new_head,
    "4096 experts, rank 48": many_experts,
}
BUDGET_MS = 10.0
BUDGET_BYTES = 1 << 20
WITHIN_BUDGET = frozenset(list(ADAPTERS)[:2])
"""What is claimed to open within the budget; thousands of targets are reported beside it."""


@dataclass(frozen=True, slots=True)
class Files:
    """One adapter, as a native file and as a folder of PEFT's."""

    native: Path
    peft: Path

    def safetensors(self) -> None:
        """Names and metadata through the reference library."""
        with safe_open(self.native, "numpy") as opened:
            opened.keys()
            opened.metadata()

    def safetensors_and_json(self) -> None:
        """The same, with the document parsed and not checked."""
        with safe_open(self.native, "numpy") as opened:
            opened.keys()
            json.loads(opened.metadata()["loreg"])

    def peft_way(self) -> None:
        """Configuration, names and shapes, which are what a rank has to be told from."""
        with (self.peft / "adapter_config.json").open() as stream:
            json.load(stream)
        with safe_open(self.peft / "adapter_model.safetensors", "numpy") as opened:
            for key in opened.keys():  # noqa: SIM118 - it is no dictionary
                opened.get_slice(key).get_shape()

    def loreg(self) -> None:
        """Everything that can be known without the data."""
        read_adapter(self.native)

    def contestants(self) -> dict[str, Callable[[], None]]:
        """Name to what is timed."""
        return {
            "loreg": self.loreg,
            "safetensors": self.safetensors,
            "safetensors + json": self.safetensors_and_json,
            "PEFT's way": self.peft_way,
        }


def make_files(adapter: Adapter, folder: Path) -> Files:
    """Both forms of an adapter of zeros."""
    folder.mkdir()
    native = write_native(adapter, folder / f"adapter{SUFFIX}")
    config = {
        "peft_type": "LORA",
        "r": max(adapter.ranks),
        "lora_alpha": max(adapter.ranks),
        "target_modules": sorted({target.name.split(".")[-2] for target in adapter if target.kind is Kind.LINEAR}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    names = {"A": ".lora_A.weight", "B": ".lora_B.weight", "value": ".weight"}
    tensors = {
        f"base_model.model.{target.name.removesuffix('.weight')}{names[role]}": tensor
        for target in adapter
        for role, tensor in target.tensors.items()
    }
    write_hole(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
    return Files(native, folder)


def contest(files: Files, rounds: int) -> dict[str, list[float]]:
    """Seconds of every contestant, in turn, ``rounds`` times after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in files.contestants()}
    for number in range(rounds + 1):
        for name, contestant in files.contestants().items():
            start = time.perf_counter()
            contestant()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure(adapter: Adapter, folder: Path, rounds: int) -> dict[str, object]:
    """The record of one adapter: what it is, what is read of it, and how long the contestants take."""
    files = make_files(adapter, folder)
    tracer = Tracer()
    opened = read_adapter(files.native, tracer)
    mapped = resident(files.native)
    medians = {name: 1e3 * statistics.median(each) for name, each in contest(files, rounds).items()}
    return {
        "file_bytes": files.native.stat().st_size,
        "header_bytes": len(open_container(files.native).header_bytes),
        "targets": len(opened),
        "tensors": sum(len(target.tensors) for target in opened),
        "bytes_read": tracer.bytes_read,
        "bytes_of_map_touched": mapped,
        "median_ms": medians,
        "times_safetensors": {name: each / medians["safetensors"] for name, each in medians.items()},
    }


def show(name: str, record: dict[str, object]) -> None:
    """Print the table of one adapter."""
    medians, ratios = record["median_ms"], record["times_safetensors"]
    assert isinstance(medians, dict)
    assert isinstance(ratios, dict)
    print(f"\n{name}: {record['file_bytes']:,} bytes, {record['targets']} targets, {record['tensors']} tensors")
    print(f"header of {record['header_bytes']:,} bytes; loreg read {record['bytes_read']:,}", end=" ")
    print(f"and touched {record['bytes_of_map_touched']:,} of the map\n")
    print(f"{'':20} {'median ms':>10} {'x safetensors':>14}")
    for contestant, each in medians.items():
        print(f"{contestant:20} {each:10.3f} {ratios[contestant]:14.1f}")
    if name in WITHIN_BUDGET:
        kept = medians["loreg"] < BUDGET_MS and int(str(record["bytes_read"])) < BUDGET_BYTES
        print(f"budget of {BUDGET_MS:.0f} ms and {BUDGET_BYTES:,} bytes: {'kept' if kept else 'MISSED'}")


def main() -> None:
    """Parse the command line, run the contest, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--scratch", type=Path, help="where the files go for the time of the run; it must keep holes")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    records = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as place:
        for number, (name, make) in enumerate(ADAPTERS.items()):
            records[name] = measure(make(), Path(place) / str(number), options.rounds)
            show(name, records[name])
    print(f"\n{os.cpu_count()} processors, load {load:.1f} before and {os.getloadavg()[0]:.1f} after; warm, medians")
    record = {
        "rounds": options.rounds,
        "machine": {
            "processors": os.cpu_count(),
            "arch": platform.machine(),
            "load_before": load,
            "load_after": os.getloadavg()[0],
        },
        "python": platform.python_version(),
        "safetensors": safetensors.__version__,
        "adapters": records,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
