"""Two adapters into one of the same rank, by singular values, beside PEFT's way to the same answer.

One run, side by side, on the shapes of a Llama of 1.5 billion weights with rank 16 on every linear layer. Each
contestant works on one layer of each shape in turn, in a process of its own, for several rounds after one that warms
up; the medians and their ratios are printed and written to ``benchmarks/results/algebra.json``. The whole model is
the sum over its layers, which for PEFT is not run but added up. What the two made is compared as whole matrices,
because a fast answer that is another one is no answer.

============ ==========================================================================================
loreg        ``combine`` with ``svd``: QR of the stacked factors, SVD of the 32 x 32 core, in float64; with
             the error of truncation and that of rounding
PEFT         ``add_weighted_adapter(combination_type="svd")``: SVD of the whole change, in float32
PEFT, thin   the same with ``svd_full_matrices=False``, which has to be asked for
============ ==========================================================================================

Usage: ``python benchmarks/algebra.py [--rounds N] [--rank R]``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent / "results" / "algebra.json"

LAYERS = 22
SHAPES = {(2048, 2048): 2, (512, 2048): 2, (8192, 2048): 2, (2048, 8192): 1}
"""Shape (out, in) to how often it is in a layer: q and o, k and v, gate and up, down."""

WEIGHTS = (0.7, 0.3)

LOREG = """
from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.ops.arrays import from_array, to_array
from lora_registry.algebra.combine import Weighted, combine
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.algebra.truncation import Truncation

def adapter(a, b):
    tensors = {"A": from_array(a), "B": from_array(b)}
    shape = (len(b), a.shape[1])
    return Adapter(targets=(Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=shape, tensors=tensors),))

parts = [Weighted(Parent(adapter(a, b)), weight) for a, b, weight in zip(As, Bs, weights)]
recipe = Recipe(method=Method.SVD, truncation=Truncation(rank=rank))

def work():
    [target] = combine(parts, recipe).adapter
    return to_array(target.tensors["A"]), to_array(target.tensors["B"])
"""

PEFT = """
import warnings
import torch
from peft import LoraConfig, get_peft_model
warnings.simplefilter("ignore")

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.nn.Linear(As[0].shape[1], len(Bs[0]), bias=False)

config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["w"])
model = get_peft_model(Model(), config, adapter_name="one")
model.add_adapter("two", config)
for name, a, b in zip(("one", "two"), As, Bs):
    model.base_model.model.w.lora_A[name].weight.data = torch.from_numpy(a)
    model.base_model.model.w.lora_B[name].weight.data = torch.from_numpy(b)

def work():
    w = model.base_model.model.w
    if "both" in w.lora_A:
        model.delete_adapter("both")
    model.add_weighted_adapter(
        ["one", "two"], list(weights), "both", combination_type="svd", svd_rank=rank, svd_full_matrices=FULL
    )
    return w.lora_A["both"].weight.detach().numpy(), w.lora_B["both"].weight.detach().numpy()
"""

FRAME = """
import json, sys, time
import numpy as np
place, rank, rounds, weights = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
given = np.load(place + "/given.npz")
As, Bs = [given["a0"], given["a1"]], [given["b0"], given["b1"]]
{contestant}
seconds = []
for number in range(rounds + 1):
    start = time.perf_counter()
    a, b = work()
    seconds.append(time.perf_counter() - start)
np.savez(place + "/made.npz", a=a, b=b)
print(json.dumps(seconds[1:]))
"""

CONTESTANTS = {
    "loreg": LOREG,
    "PEFT, thin": PEFT.replace("FULL", "False"),
    "PEFT": PEFT.replace("FULL", "True"),
}


def give(place: Path, shape: tuple[int, int], rank: int) -> np.ndarray:
    """Write the factors of two random adapters and return the exact weighted sum of their changes."""
    random = np.random.default_rng(0)
    given = {}
    for number in range(2):
        given[f"a{number}"] = random.standard_normal((rank, shape[1])).astype(np.float32)
        given[f"b{number}"] = (random.standard_normal((shape[0], rank)) * 0.01).astype(np.float32)
    np.savez(place / "given.npz", **given)
    return sum(
        weight * given[f"b{number}"].astype(np.float64) @ given[f"a{number}"].astype(np.float64)
        for number, weight in enumerate(WEIGHTS)
    )


def run(contestant: str, place: Path, rank: int, rounds: int) -> tuple[float, np.ndarray]:
    """The median of the seconds, and the change that was made, as a whole matrix in float64."""
    code = FRAME.replace("{contestant}", CONTESTANTS[contestant])
    command = [sys.executable, "-c", code, str(place), str(rank), str(rounds), json.dumps(WEIGHTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{contestant} failed:\n{done.stderr}")
    made = np.load(place / "made.npz")
    seconds = json.loads(done.stdout.splitlines()[-1])
    return statistics.median(seconds), made["b"].astype(np.float64) @ made["a"].astype(np.float64)


def contest(shape: tuple[int, int], rank: int, rounds: int) -> dict[str, dict[str, float]]:
    """Every contestant on one layer of a shape: seconds, error, and distance from what loreg made."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        exact = give(place, shape, rank)
        size = float(np.linalg.norm(exact))
        records, ours = {}, exact
        for name in CONTESTANTS:
            seconds, made = run(name, place, rank, rounds)
            ours = made if name == "loreg" else ours
            records[name] = {
                "seconds": seconds,
                "error": float(np.linalg.norm(made - exact)) / size,
                "from_loreg": float(np.linalg.norm(made - ours)) / size,
            }
            print(f"{shape[0]} x {shape[1]}  {name:10} {seconds:9.4f} s", file=sys.stderr)
    for record in records.values():
        record["times_loreg"] = record["seconds"] / records["loreg"]["seconds"]
    return records


def show(records: dict[str, dict[str, dict[str, float]]], model: dict[str, float]) -> None:
    """Print the table."""
    print(f"\none layer of each shape, {os.cpu_count()} processors; medians\n")
    print(f"{'shape':>12} {'':10} {'seconds':>9} {'x loreg':>8} {'error':>9} {'from loreg':>11}")
    for shape, contestants in records.items():
        for name, record in contestants.items():
            print(
                f"{shape:>12} {name:10} {record['seconds']:9.4f} {record['times_loreg']:8.1f} "
                f"{record['error']:9.6f} {record['from_loreg']:11.1e}"
            )
    count = LAYERS * sum(SHAPES.values())
    print(f"\nall {count} matrices of the model:")
    for name, seconds in model.items():
        print(f"{name:10} {seconds:9.1f} s  {seconds / model['loreg']:7.1f} x loreg")


def main() -> None:
    """Parse the command line, run the contest, print and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    records = {f"{shape[0]} x {shape[1]}": contest(shape, options.rank, options.rounds) for shape in SHAPES}
    model = {
        name: LAYERS
        * sum(count * each[name]["seconds"] for count, each in zip(SHAPES.values(), records.values(), strict=True))
        for name in CONTESTANTS
    }
    show(records, model)
    RESULTS.parent.mkdir(exist_ok=True)
    record = {
        "rank": options.rank,
        "rounds": options.rounds,
        "layers": LAYERS,
        "machine": {"processors": os.cpu_count(), "arch": platform.machine(), "load_before": load},
        "python": platform.python_version(),
        "shapes": records,
        "model_seconds": model,
    }
    RESULTS.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
