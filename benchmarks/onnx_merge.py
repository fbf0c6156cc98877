"""The merge into an ONNX model with 500 MB of external data beside ``cp`` of its files.

Every contestant runs in a process of its own, in turn, for several rounds. The seconds of loreg are those of the
merge: what Python, numpy and onnx need to start is told apart, as cp has none of that. Medians and their ratios to
``cp`` are printed and kept in ``benchmarks/results/onnx-merge.json``.

=================== ======================================================================
cp                  ``cp -r`` of the folder
loreg               resolves, merges, hashes inputs and outputs, waits for the disk
... no sync         without waiting for the disk, as cp
... no hash         without digests either: what cp does
=================== ======================================================================

Usage: ``python benchmarks/onnx_merge.py [--rounds 5] [--rank 16] [--scratch FOLDER]``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from measuring import measure
from onnx import TensorProto, helper

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.format.writer import write_adapter

RESULTS = Path(__file__).resolve().parent / "results"
LAYERS, WIDTH, INNER = 15, 2048, 4096

LOREG = """
import sys, time, json
from pathlib import Path
from lora_registry.format.reader import read_adapter
from lora_registry.merge.onnx.model import merge_onnx
base, adapter, out, said = map(Path, sys.argv[1:5])
out.mkdir()
start = time.perf_counter()
merge_onnx(read_adapter(adapter), base / "model.onnx", out / "model.onnx",
           durable="sync" in sys.argv[5:], hashed="hash" in sys.argv[5:])
said.write_text(json.dumps(time.perf_counter() - start))
"""


def make(folder: Path, adapter: Path, rank: int, share: int) -> int:
    """A stack of matrices in one data file, and an adapter of every ``share``-th; returns the bytes of the data."""
    random = np.random.default_rng(0)
    folder.mkdir()
    nodes, tensors, targets, offset, last = [], [], [], 0, "x"
    with (folder / "model.onnx.data").open("wb") as stream:
        for number in range(LAYERS):
            shape = (WIDTH, INNER) if number % 2 == 0 else (INNER, WIDTH)
            name = f"layers.{number}.weight"
            stream.write((random.standard_normal(shape, np.float32) * 0.02).tobytes())
            tensor = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=1)
            length = shape[0] * shape[1] * 4
            for key, value in (("location", "model.onnx.data"), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
            tensors.append(tensor)
            offset += length
            nodes.append(helper.make_node("MatMul", [last, name], [f"h{number}"], name=f"/layers.{number}/MatMul"))
            last = f"h{number}"
            if number % share == 0:
                factors = {
                    role: Tensor("F32", size, (random.standard_normal(size, np.float32) * 0.02).tobytes())
                    for role, size in (("A", (rank, shape[0])), ("B", (shape[1], rank)))
                }
                targets.append(
                    Target(name=name, kind=Kind.LINEAR, layout=("in", "out"), shape=shape, tensors=factors, scale=2.0)
                )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", 1, ["n", WIDTH])], [value(last, 1, ["n", "m"])], initializer=tensors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    write_adapter(Adapter(targets=tuple(targets)), adapter)
    return offset


def main() -> None:
    """Run the contest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--scratch", type=Path)
    options = parser.parse_args()
    results: dict[str, object] = {"rank": options.rank, "rounds": options.rounds}
    for title, share in (("every matrix", 1), ("every third matrix", 3), ("every sixth matrix", 6)):
        with tempfile.TemporaryDirectory(dir=options.scratch) as name:
            place = Path(name)
            size = make(place / "base", place / "a.loreg.safetensors", options.rank, share)
            contestants = {"cp": None, "loreg": ["sync", "hash"], "no sync": ["hash"], "no sync, no hash": []}
            seen: dict[str, list[tuple[float, float, float]]] = {each: [] for each in contestants}
            for _ in range(options.rounds):
                for each, flags in contestants.items():
                    out, said = place / "out", place / "said"
                    if flags is None:
                        run = measure(["cp", "-r", str(place / "base"), str(out)])
                        seconds = run.wall_s
                    else:
                        paths = [str(place / "base"), str(place / "a.loreg.safetensors"), str(out), str(said)]
                        run = measure([sys.executable, "-c", LOREG, *paths, *flags])
                        seconds = json.loads(said.read_text())
                    seen[each].append((seconds, run.peak_rss_mb, run.peak_anonymous_mb))
                    for path in out.iterdir():
                        path.unlink()
                    out.rmdir()
            floor = statistics.median(seconds for seconds, *_ in seen["cp"])
            table = {}
            print(f"{title}, {size / 1e6:.0f} MB, rank {options.rank}")
            for each, runs in seen.items():
                seconds, rss, anonymous = (statistics.median(column) for column in zip(*runs, strict=True))
                table[each] = {
                    "seconds": round(seconds, 3),
                    "times_cp": round(seconds / floor, 2),
                    "peak_rss_mb": round(rss),
                    "peak_anonymous_mb": round(anonymous),
                }
                print(f"  {each:18} {seconds:7.3f} s {seconds / floor:6.2f} x cp  anonymous {anonymous:5.0f} MB")
            results[title] = {"bytes": size, "contestants": table}
    (RESULTS / "onnx-merge.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
