"""What it costs to check a merge and to undo it, beside ``cp`` of the same files as the floor.

One run, side by side: every contestant is a process of its own, in turn, for several rounds; medians and their
ratios are printed and written to ``benchmarks/results/verify.json``.

================= ==================================================================================
cp                ``cp -r`` of the merged checkpoint
verify            ``loreg verify``: 32 rows of each changed tensor, 16 blocks of each other one
verify --all      every row in float64, every byte
save the patch    ``loreg unmerge --save-undo``: base and merged hashed, differences packed
unmerge           ``loreg unmerge --undo``: merged and restored hashed, differences unpacked
unmerge --base    ``loreg unmerge --base``: base and merged hashed, base copied
================= ==================================================================================

Usage: ``python benchmarks/verify.py [--size BYTES] [--rounds N] [--rank R]``.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from checkpoints import ALL_LINEAR, make_adapter, make_base
from measuring import Run, load, measure, medians, touch_memory

RESULTS = Path(__file__).resolve().parent / "results" / "verify.json"
LOREG = [sys.executable, "-m", "lora_registry"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        figures = run(Path(name), asked.size, asked.rounds, asked.rank)
    RESULTS.write_text(json.dumps(figures, indent=1) + "\n")


def run(root: Path, size: int, rounds: int, rank: int) -> dict[str, object]:
    """All rounds in ``root``; the figures, which are also printed."""
    base = make_base(root / "base", size)
    adapter = make_adapter(root / "adapter", base, rank, ALL_LINEAR)
    merged, patch, out = root / "merged", root / "m.undo", root / "out"
    subprocess.run([*LOREG, "merge", adapter, "--base", base, "-o", merged, "--keep-undo", patch], check=True)
    against = [str(merged), "--base", str(base)]
    contestants = {
        "cp": ["cp", "-r", str(merged), str(out)],
        "verify": [*LOREG, "verify", *against, "--adapter", str(adapter)],
        "verify --all": [*LOREG, "verify", *against, "--adapter", str(adapter), "--all"],
        "save the patch": [*LOREG, "unmerge", *against, "--save-undo", str(out)],
        "unmerge": [*LOREG, "unmerge", str(merged), "--undo", str(patch), "-o", str(out)],
        "unmerge --base": [*LOREG, "unmerge", *against, "-o", str(out)],
    }
    touched = touch_memory()
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, command in contestants.items():
            runs[name].append(measure(command))
            if out.is_dir():
                shutil.rmtree(out)
            out.unlink(missing_ok=True)
    middle = {name: medians(each) for name, each in runs.items()}
    whole = sum(path.stat().st_size for path in merged.iterdir())
    share = patch.stat().st_size / whole
    print(f"{whole / 1e9:.2f} GB, rank {rank} on every linear layer; the patch is {share:.0%} of that")
    for name, figures in middle.items():
        ratio = figures["wall_s"] / middle["cp"]["wall_s"]
        print(f"{name:15} {figures['wall_s']:7.2f} s  {ratio:5.1f} x cp  {figures['peak_anonymous_mb']:6.0f} MB")
    return {
        "bytes": whole,
        "patch_bytes": patch.stat().st_size,
        "rank": rank,
        "rounds": rounds,
        "machine": platform.machine(),
        "load": load(),
        "touched": touched,
        "median": middle,
        "runs": {name: [asdict(one) for one in each] for name, each in runs.items()},
    }


if __name__ == "__main__":
    main()
