"""The merge beside what a user would run instead: ``cp`` as the floor, PEFT as the usual way.

One run, side by side: every contestant merges the same adapter into the same base, each in a process of its
own, in turn, for several rounds; the medians and their ratios are printed and written to
``benchmarks/results/merge.json``. What loreg and PEFT wrote is compared element by element, because a fast
merge that differs is no merge.

=============== =====================================================================================
cp              ``cp -r`` of the base: what the bytes alone cost
cp + sync       the same until it is on the disk, which is where the merge of loreg ends too
loreg           reads the PEFT folder, merges, hashes all inputs and outputs, measures every change
PEFT            ``from_pretrained``, ``merge_and_unload()``, ``save_pretrained`` with the base's dtype
=============== =====================================================================================

Usage: ``python benchmarks/merge.py [BASE_FOLDER] [--rounds N] [--rank R] [--dtype TORCH_DTYPE]``. Without a
folder, SmolLM2-135M of the quickstart is taken; ``--synthetic`` makes a Llama of random weights instead.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "merge.json"

CP = 'cp -r "$1" "$2"'
CP_SYNC = 'cp -r "$1" "$2" && sync -f "$2"'

LOREG = """
import sys
from pathlib import Path
from loreg_converters.peft import converter
from lora_registry.merge.checkpoint import merge_checkpoint
base, adapter, out = map(Path, sys.argv[1:4])
merge_checkpoint(converter.read(adapter)[0], base, out)
"""

PEFT = """
import sys
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, out = sys.argv[1:4]
model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One process: seconds of the clock, seconds of the processors, peaks in bytes.

    Resident memory counts pages of mapped files, which the kernel takes back at will; anonymous memory does not.
    """

    wall: float
    cpu: float
    resident: int
    anonymous: int


def commands(base: Path, adapter: Path, out: Path) -> dict[str, list[str]]:
    """The contestants."""
    folders = [str(base), str(adapter), str(out)]
    return {
        "cp": ["sh", "-c", CP, "sh", str(base), str(out)],
        "cp + sync": ["sh", "-c", CP_SYNC, "sh", str(base), str(out)],
        "loreg": [sys.executable, "-c", LOREG, *folders],
        "PEFT": [sys.executable, "-c", PEFT, *folders],
    }


def measure(command: list[str]) -> Run:
    """Run a process to its end and watch its memory.

    The kernel's own peak of resident memory (getrusage) would count what this process had when it forked.
    """
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peaks, done = {"VmHWM:": 0, "RssAnon:": 0}, threading.Event()
    watcher = threading.Thread(target=watch, args=(process.pid, peaks, done))
    watcher.start()
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    done.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:2]} failed:\n{said.decode(errors='replace')}")
    return Run(wall, usage.ru_utime + usage.ru_stime, peaks["VmHWM:"], peaks["RssAnon:"])


def watch(pid: int, peaks: dict[str, int], done: threading.Event) -> None:
    """Look at the memory of ``pid`` every five milliseconds and keep the peaks, in bytes."""
    status = Path(f"/proc/{pid}/status")
    while not done.wait(0.005):
        try:
            lines = status.read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            return
        for name, _, value in (line.partition("\t") for line in lines):
            if name in peaks:
                peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)


def make_synthetic(folder: Path) -> Path:
    """A Llama of 0.2 billion random weights in bfloat16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=14,
        num_attention_heads=16,
        num_key_value_heads=4,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def convert(base: Path, folder: Path, dtype: str) -> Path:
    """The base in another dtype, so that the usual half precision can be measured too."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, rank: int) -> Path:
    """A random LoRA of every linear layer, saved by PEFT; about 2 % of the weights' size."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    wrapped = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.01)
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    return folder


def compare(first: Path, second: Path) -> dict[str, float]:
    """How the tensors of two folders differ: in how many elements, and by how much of a tensor's largest value."""
    import numpy as np

    from lora_registry.merge.base import open_base

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


def contest(base: Path, adapter: Path, place: Path, rounds: int) -> tuple[dict[str, list[Run]], dict[str, float]]:
    """Every contestant in turn, ``rounds`` times, after one round that warms the page cache."""
    runs: dict[str, list[Run]] = {name: [] for name in commands(base, adapter, place)}
    for number in range(rounds + 1):
        for name, done in runs.items():
            out = place / f"{name.replace(' ', '')}-out"
            shutil.rmtree(out, ignore_errors=True)
            run = measure(commands(base, adapter, out)[name])
            if number:
                done.append(run)
                print(f"round {number}  {name:10} {run.wall:8.2f} s", file=sys.stderr)
    return runs, compare(place / "loreg-out", place / "PEFT-out")


def summary(runs: dict[str, list[Run]]) -> dict[str, dict[str, float]]:
    """Medians, and ratios of the wall clock."""
    medians = {
        name: {
            "wall_s": statistics.median(run.wall for run in each),
            "cpu_s": statistics.median(run.cpu for run in each),
            "peak_rss_mb": statistics.median(run.resident for run in each) / 1e6,
            "peak_anonymous_mb": statistics.median(run.anonymous for run in each) / 1e6,
        }
        for name, each in runs.items()
    }
    for record in medians.values():
        record["times_cp"] = record["wall_s"] / medians["cp"]["wall_s"]
        record["times_loreg"] = record["wall_s"] / medians["loreg"]["wall_s"]
    return medians


def show(medians: dict[str, dict[str, float]], same: dict[str, float], size: int) -> None:
    """Print the table."""
    print(f"\nbase of {size / 1e6:.0f} MB, {os.cpu_count()} processors; medians\n")
    print(f"{'':10} {'wall s':>8} {'cpu s':>8} {'x cp':>7} {'x loreg':>8} {'peak RSS MB':>12} {'peak anon MB':>13}")
    for name, record in medians.items():
        print(
            f"{name:10} {record['wall_s']:8.2f} {record['cpu_s']:8.2f} {record['times_cp']:7.1f} "
            f"{record['times_loreg']:8.2f} {record['peak_rss_mb']:12.0f} {record['peak_anonymous_mb']:13.0f}"
        )
    print(
        f"\nloreg against PEFT: {same['different_elements']:.2e} of the elements differ, "
        f"by at most {same['largest_relative_difference']:.1e} of the tensor's largest value"
    )


def prepared_smollm2() -> Path:
    """SmolLM2-135M-Instruct as the quickstart puts it on the disk."""
    sys.path.insert(0, str(HERE.parent / "examples" / "quickstart"))
    import prepare

    return prepare.prepare(prepare.SMOLLM2)


def main() -> None:
    """Parse the command line, run the contest, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", nargs="?", type=Path, help="folder of a causal language model")
    parser.add_argument("--synthetic", action="store_true", help="a Llama of random weights instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument(
        "--dtype", default="bfloat16", help="the base is converted to it first; 'keep' takes it as it is"
    )
    parser.add_argument("--scratch", type=Path, help="where the outputs go for the time of the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        place = Path(folder)
        if options.synthetic:
            base = make_synthetic(place / "base")
        else:
            base = options.base or prepared_smollm2()
            if options.dtype != "keep":
                base = convert(base, place / "base", options.dtype)
        adapter = make_adapter(base, place / "adapter", options.rank)
        size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
        load = os.getloadavg()[0]
        runs, same = contest(base, adapter, place, options.rounds)
    medians = summary(runs)
    show(medians, same, size)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "base": "synthetic" if options.synthetic else (options.base.name if options.base else "SmolLM2-135M-Instruct"),
        "dtype": options.dtype,
        "rank": options.rank,
        "rounds": options.rounds,
        "base_bytes": size,
        "machine": {"processors": os.cpu_count(), "arch": platform.machine(), "load_before": load},
        "python": platform.python_version(),
        "medians": medians,
        "against_peft": same,
    }
    RESULTS.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
