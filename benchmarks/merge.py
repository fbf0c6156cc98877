"""The merge beside what a user would run instead: ``cp`` as the floor, PEFT, mergekit and axolotl as the usual ways.

One command, one run, side by side. Every contestant merges the same adapter into the same base, each in a process of
its own, in turn, for several rounds; memory is touched beforehand. Printed and kept in
``benchmarks/results/merge.json`` are medians, their ratios to ``cp``, and how many elements loreg and PEFT wrote
differently, because a fast merge that differs is no merge.

=================== ===================================================================================
cp                  ``cp -r`` of the base: what the bytes alone cost
cp + sync           the same until it is on the disk, which is where the merge of loreg ends too
loreg, N workers    reads the PEFT folder, merges, hashes inputs and outputs, measures every change
... no hash         the same without the digests
... no sync         the same without waiting for the disk: what ``cp`` does
... q,v             an adapter of two of the seven matrices of a layer
PEFT                ``from_pretrained``, ``merge_and_unload()``, ``save_pretrained`` with the base's dtype
mergekit, axolotl   theirs, where the interpreter of ``--others`` has them; else the reason is kept
=================== ===================================================================================

Then, of loreg alone: the memory for ``--small`` and ``--large`` gigabytes, and the ranks from 1 to 256 as a plot,
``benchmarks/results/merge-ranks.svg``.

Usage: ``python benchmarks/merge.py [--gigabytes 3] [--rounds 5] [--others PYTHON] [--scratch FOLDER]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

from checkpoints import ALL_LINEAR, make_adapter, make_base
from measuring import Run, load, measure, medians, touch_memory
from plot import ranks_as_svg, ranks_as_text

RESULTS = Path(__file__).resolve().parent / "results"

CP = 'cp -r "$1" "$2"'
CP_SYNC = 'cp -r "$1" "$2" && sync -f "$2"'

LOREG = """
import sys
from pathlib import Path
from loreg_converters.peft import converter
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
base, adapter, out = map(Path, sys.argv[1:4])
options, without = MergeOptions(hashed="hashed" not in sys.argv), "durable" in sys.argv
merge_checkpoint(converter.read(adapter)[0], base, out, options, workers=int(sys.argv[4]), durable=not without)
"""

PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""

MERGEKIT = """
import sys
from mergekit.config import MergeConfiguration
from mergekit.merge import MergeOptions, run_merge
base, adapter, out = sys.argv[1:4]
config = {"merge_method": "passthrough", "models": [{"model": f"{base}+{adapter}"}], "dtype": "bfloat16"}
options = MergeOptions(lora_merge_cache=out + "-cache", copy_tokenizer=False)
run_merge(MergeConfiguration.model_validate(config), out, options)
"""

AXOLOTL = """
import sys
from pathlib import Path
from axolotl.cli.utils.lora_merge import merge_lora_sharded_efficient
merge_lora_sharded_efficient(*map(Path, sys.argv[1:4]))
"""


WITHOUT = {"": (), ", no hash": ("hashed",), ", no hash, no sync": ("hashed", "durable")}


KINDS = {"hash": ("durable",), "no hash": ("hashed", "durable")}


def loreg(base: Path, adapter: Path, out: Path, workers: int, *without: str) -> list[str]:
    """The command of one merge by loreg; ``without`` are options that are true by default and false here."""
    return [sys.executable, "-c", LOREG, str(base), str(adapter), str(out), str(workers), *without]


def commands(base: Path, everything: Path, some: Path, out: Path, others: str) -> dict[str, list[str]]:
    """The contestants."""
    usual = [str(base), str(everything), str(out)]
    ours = {
        f"loreg, {workers} worker{'s' * (workers > 1)}{name}{without}": loreg(base, adapter, out, workers, *options)
        for name, adapter in (("", everything), (", q,v", some))
        for workers in (1, 2)
        for without, options in WITHOUT.items()
    }
    return {
        "cp": ["sh", "-c", CP, "sh", str(base), str(out)],
        "cp + sync": ["sh", "-c", CP_SYNC, "sh", str(base), str(out)],
        **ours,
        "PEFT": [sys.executable, "-c", PEFT, *usual],
        "mergekit": [others, "-c", MERGEKIT, *usual],
        "axolotl": [others, "-c", AXOLOTL, *usual],
    }


def contest(
    base: Path, everything: Path, some: Path, place: Path, rounds: int, others: str
) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """Every contestant in turn, ``rounds`` times, after one round that warms the page cache.

    Returns:
        The runs by name, and why a contestant did not take part.
    """
    runs: dict[str, list[Run]] = {}
    absent: dict[str, str] = {}
    for number in range(rounds + 1):
        for name in commands(base, everything, some, place, others):
            if name in absent:
                continue
            out = place / name.replace(" ", "-").replace(",", "")
            for old in (out, place / f"{out.name}-cache"):
                shutil.rmtree(old, ignore_errors=True)
            try:
                run = measure(commands(base, everything, some, out, others)[name])
            except RuntimeError as error:
                if name not in ("mergekit", "axolotl"):
                    raise
                absent[name] = str(error).splitlines()[-1]
                print(f"{name} takes no part: {absent[name]}", file=sys.stderr)
                continue
            if number:
                runs.setdefault(name, []).append(run)
                print(f"round {number}  {name:38} {run.wall_s:8.2f} s  load {load():.1f}", file=sys.stderr)
            if name not in ("PEFT", "loreg, 2 workers"):
                shutil.rmtree(out)
    return runs, absent


def compare(first: Path, second: Path) -> dict[str, float]:
    """How the tensors of two folders differ: in how many elements, and by how much of a tensor's largest value."""
    import numpy as np

    from lora_registry.merge.bases.base import open_base

    one, two = open_base(first), open_base(second)
    assert set(one.names()) == set(two.names()), "the contestants wrote different tensors"
    different = elements = 0
    worst = 0.0
    for name in one.names():
        a, b = (each.array(name).astype(np.float32) for each in (one, two))
        different += int(np.count_nonzero(a != b))
        elements += a.size
        worst = max(worst, float(np.abs(a - b).max() / np.abs(b).max()))
    return {"different_elements": different / elements, "largest_relative_difference": worst}


def memory(place: Path, gigabytes: list[float]) -> dict[str, dict[str, float]]:
    """One merge of loreg into a base of zeros of each size, which needs no room on the disk but for the output."""
    found = {}
    for size in gigabytes:
        base = make_base(place / "sized", int(size * 1e9), sparse=True)
        adapter = make_adapter(place / "sized-adapter", base, 16, ALL_LINEAR)
        run = measure(loreg(base, adapter, place / "sized-out", 2))
        found[f"{size:g} GB"] = medians([run])
        for folder in ("sized", "sized-adapter", "sized-out"):
            shutil.rmtree(place / folder)
    return found


def ranks(place: Path, size: float, rounds: int) -> dict[str, dict[int, float]]:
    """Times ``cp`` for ranks from 1 to 256 on one base, with digests and without, neither waiting for the disk."""
    base = make_base(place / "ranked", int(size * 1e9))
    adapters = {rank: make_adapter(place / f"rank{rank}", base, rank, ALL_LINEAR) for rank in (2**n for n in range(9))}
    out = place / "ranked-out"
    copies: list[Run] = []
    runs: dict[tuple[str, int], list[Run]] = {}
    for _ in range(rounds):
        copies.append(measure(["sh", "-c", CP, "sh", str(base), str(out)]))
        shutil.rmtree(out)
        for rank, adapter in adapters.items():
            for kind, without in KINDS.items():
                run = measure(loreg(base, adapter, out, 2, *without))
                runs.setdefault((kind, rank), []).append(run)
                shutil.rmtree(out)
    floor = medians(copies)["wall_s"]
    return {kind: {rank: medians(runs[kind, rank])["wall_s"] / floor for rank in adapters} for kind in KINDS}


def show(table: dict[str, dict[str, float]], same: dict[str, float], size: int) -> None:
    """Print the table."""
    print(f"\nbase of {size / 1e6:.0f} MB, {os.cpu_count()} processors; medians\n")
    print(f"{'':38} {'wall s':>8} {'cpu s':>8} {'x cp':>7} {'peak RSS MB':>12} {'peak anon MB':>13}")
    for name, record in table.items():
        print(
            f"{name:38} {record['wall_s']:8.2f} {record['cpu_s']:8.2f} {record['times_cp']:7.2f} "
            f"{record['peak_rss_mb']:12.0f} {record['peak_anonymous_mb']:13.0f}"
        )
    print(
        f"\nloreg against PEFT: {same['different_elements']:.2e} of the elements differ, "
        f"by at most {same['largest_relative_difference']:.1e} of the tensor's largest value"
    )


def main() -> None:
    """Parse the command line, run everything, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of the base of the contest")
    parser.add_argument("--small", type=float, default=0.5, help="gigabytes of the small base")
    parser.add_argument("--large", type=float, default=12.0, help="gigabytes of the large base")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--others", default=sys.executable, help="a Python that has mergekit and axolotl")
    parser.add_argument("--scratch", type=Path, help="where bases and outputs go for the time of the run")
    options = parser.parse_args()
    before = load()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        place = Path(folder)
        touched = touch_memory()
        base = make_base(place / "base", int(options.gigabytes * 1e9))
        everything = make_adapter(place / "all-linear", base, 16, ALL_LINEAR)
        some = make_adapter(place / "qv", base, 16, ("q_proj", "v_proj"))
        size = sum(path.stat().st_size for path in base.iterdir())
        runs, absent = contest(base, everything, some, place, options.rounds, options.others)
        same = compare(place / "loreg-2-workers", place / "PEFT")
        for name in ("loreg-2-workers", "PEFT"):
            shutil.rmtree(place / name)
        table = {name: medians(each) for name, each in runs.items()}
        for record in table.values():
            record["times_cp"] = record["wall_s"] / table["cp"]["wall_s"]
        sizes = memory(place, [options.small, options.large])
        by_rank = ranks(place, options.small, options.rounds)
    show(table, same, size)
    for name, record in sizes.items():
        print(f"loreg, {name}: {record['wall_s']:.1f} s, {record['peak_anonymous_mb']:.0f} MB of anonymous memory")
    print(ranks_as_text(by_rank))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "merge-ranks.svg").write_text(ranks_as_svg(by_rank))
    record = {
        "base_bytes": size,
        "rank": 16,
        "rounds": options.rounds,
        "machine": {"processors": os.cpu_count(), "arch": platform.machine(), "load": [before, load()]},
        "memory_touched_bytes": touched,
        "python": platform.python_version(),
        "medians": table,
        "takes_no_part": absent,
        "against_peft": same,
        "memory": sizes,
        "times_cp_by_rank": by_rank,
    }
    (RESULTS / "merge.json").write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
