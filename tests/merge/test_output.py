"""What a merge leaves on the disk: all of it, or nothing, and no stale weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from peft import LoraConfig
from safetensors.numpy import load_file, save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import (
    ConflictError,
    InvalidInputError,
    MachineError,
    NotAllowedError,
    NotFoundError,
    UsageError,
)
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.ops.arrays import from_array


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with one tensor, a configuration and a tokenizer."""
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"w": np.zeros((64, 32), np.float32), "v": np.ones(7, np.int64)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text('{"a": 1}')
    return folder


@pytest.fixture
def adapter() -> Adapter:
    """Adds 2 to every element of w."""
    factors = {"A": from_array(np.ones((2, 32), np.float32)), "B": from_array(np.ones((64, 2), np.float32))}
    return Adapter(targets=(Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=(64, 32), tensors=factors),))


def broken(adapter: Adapter) -> Adapter:
    """The same with an infinity, which shows only while the file is being written."""
    target = adapter.targets[0]
    factors = {**target.tensors, "A": from_array(np.full((2, 32), np.inf, np.float32))}
    return Adapter(targets=(Target(name="w", kind=target.kind, layout=target.layout, shape=(64, 32), tensors=factors),))


def test_an_existing_output_is_a_conflict(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Nothing is overwritten unasked; asked, only what a merge made is replaced."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("draft")
    for overwrite in (False, True):
        with pytest.raises(ConflictError):
            merge_checkpoint(adapter, base, tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out" / "thesis.txt").read_text() == "draft"
    merge_checkpoint(adapter, base, tmp_path / "merged")
    (tmp_path / "merged" / "old.txt").write_text("gone afterwards")
    with pytest.raises(ConflictError):
        merge_checkpoint(adapter, base, tmp_path / "merged")
    merge_checkpoint(adapter, base, tmp_path / "merged", overwrite=True)
    assert not (tmp_path / "merged" / "old.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "merged", "out"]


def test_the_base_is_never_the_output(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Neither the base itself, nor a place inside of it, nor one around it."""
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    for out in (base, base / "merged", tmp_path):
        with pytest.raises(NotAllowedError):
            merge_checkpoint(adapter, base, out, overwrite=True)
    file = base / "model.safetensors"
    with pytest.raises(NotAllowedError):
        merge_checkpoint(adapter, file, file, overwrite=True)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before


def test_requests_that_make_no_sense_are_usage_errors(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """A dtype that is none, a file that is no safetensors file, a folder that does not exist."""
    with pytest.raises(UsageError, match="'int4' is no type to merge into"):
        merge_checkpoint(adapter, base, tmp_path / "out", MergeOptions(dtype="int4"))
    for name in ("out.onnx", "out.safetensors"):
        with pytest.raises(UsageError, match="the base is a folder, so the output is one too"):
            merge_checkpoint(adapter, base, tmp_path / name)
    with pytest.raises(UsageError, match=r"must be called \*\.safetensors"):
        merge_checkpoint(adapter, base / "model.safetensors", tmp_path / "out.bin")
    with pytest.raises(NotFoundError, match="no such folder"):
        merge_checkpoint(adapter, base, tmp_path / "none" / "out")


def test_a_failure_in_the_middle_leaves_nothing(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """The output that was begun is gone, and an earlier one is as it was."""
    merge_checkpoint(adapter, base, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InvalidInputError, match="not finite"):
        merge_checkpoint(broken(adapter), base, tmp_path / "out", overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out"]


def test_stale_weights_are_left_out_and_named(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Other formats of the same weights do not travel; modules in folders and text files do."""
    stale = ["pytorch_model.bin", "model.gguf", "consolidated.safetensors", "pytorch_model.bin.index.json"]
    stale += ["adapter_config.json", "tf_model.h5", "onnx/model.onnx"]
    kept = ["README.md", "1_Pooling/config.json", "2_Dense/model.safetensors", "vocab.txt"]
    hidden = [".git/config", ".gitattributes"]
    for name in stale + kept + hidden:
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    receipt = merge_checkpoint(adapter, base, tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    own = {"model.safetensors", "config.json", "tokenizer.json", "loreg-receipt.json"}
    assert found == {*own, *kept}
    note = next(note for note in receipt.notes if note.startswith("left out"))
    assert all(name.partition("/")[0] in note for name in stale)
    assert "README.md is the base's model card, as it was" in receipt.notes


def test_untouched_bytes_stay(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Header, untouched tensors and the header's padding are those of the base."""
    merge_checkpoint(adapter, base, tmp_path / "out")
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (base, tmp_path / "out"))
    header = 8 + int.from_bytes(before[:8], "little")
    assert before[:header] == after[:header]
    merged = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(merged["w"], np.full((64, 32), 2.0))
    assert np.array_equal(merged["v"], np.ones(7, np.int64))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("this machine does not let tests mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_too_small_is_noticed_before(small_disk: Path, adapter: Adapter, tmp_path: Path) -> None:
    """The message says how much is needed and how much is there; nothing is written."""
    big = tmp_path / "big.safetensors"
    save_file({"w": np.zeros((64, 32), np.float32), "v": np.zeros(5 << 20, np.float32)}, big)
    with pytest.raises(MachineError, match=r"needs .* bytes, .* to spare, and .* free"):
        merge_checkpoint(adapter, big, small_disk / "out.safetensors")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("size", [4 << 10, 3 << 20])
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(size: int, adapter: Adapter, tmp_path: Path) -> None:
    """A write that fails, in the thread that writes or in a copy, ends in one line and no files."""
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"w": np.zeros((64, 32), np.float32), "v": np.zeros(5 << 20, np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    script = f"""
import resource, signal
from pathlib import Path
import numpy as np
from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import MachineError
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import from_array
factors = {{"A": from_array(np.ones((2, 32), np.float32)), "B": from_array(np.ones((64, 2), np.float32))}}
target = Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=(64, 32), tensors=factors)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))
try:
    merge_checkpoint(Adapter(targets=(target,)), Path({str(folder)!r}), Path({str(tmp_path / "out")!r}))
except MachineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 1
    assert "the file is too big" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


MEMORY = """
import json, re, sys, threading
from pathlib import Path
import numpy as np
from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import from_array
folder = Path(sys.argv[1])
random = np.random.default_rng(0)
def peak():
    # Anonymous memory alone: pages of mapped files belong to the page cache.
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
shapes = json.loads(sys.argv[2])
targets = []
for name, (out, inner) in shapes.items():
    factors = {
        "A": from_array(random.normal(size=(8, inner)).astype(np.float32)),
        "B": from_array(random.normal(size=(out, 8)).astype(np.float32)),
        "magnitude": from_array(np.ones(out, np.float32)),
    }
    targets.append(Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(out, inner), tensors=factors))
before = peak()
peaks, done = [], threading.Event()
def watch():
    while not done.wait(0.002):
        peaks.append(peak())
watcher = threading.Thread(target=watch)
watcher.start()
merge_checkpoint(Adapter(targets=tuple(targets)), folder, folder.parent / "out")
done.set()
watcher.join()
print(json.dumps({"before": before, "peak": max(peaks)}))
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """A checkpoint of 320 MB with a tensor of 256 MB merges in less than 60 MB beyond what Python and numpy take."""
    import ml_dtypes

    folder = tmp_path / "base"
    folder.mkdir()
    shapes = {"big": (32768, 4096), "small": (8192, 2048)}
    rows = np.random.default_rng(0).normal(size=(1, 4096)).astype(ml_dtypes.bfloat16)
    tensors = {name: np.broadcast_to(rows[:, : shape[1]], shape) for name, shape in shapes.items()}
    from lora_registry.format.container import encode_header, place

    with (folder / "model.safetensors").open("wb") as stream:
        entries = place({name: ("BF16", shape) for name, shape in shapes.items()})
        stream.write(encode_header(entries, {}))
        for name in entries:
            for start in range(0, shapes[name][0], 1024):
                stream.write(np.ascontiguousarray(tensors[name][start : start + 1024]).tobytes())
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(folder), json.dumps(shapes)], capture_output=True, text=True, check=True
    )
    memory = json.loads(done.stdout)
    assert (folder / "model.safetensors").stat().st_size > 280e6
    assert memory["peak"] - memory["before"] < 60e6
    assert memory["peak"] < 120e6


def test_progress_counts_the_bytes_of_the_weights(
    peft_merge: Callable, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """From nothing to all of them, never backwards."""
    adapter, _ = peft_merge("llama-untied", LoraConfig(r=2, target_modules=["q_proj"]))
    seen: list[tuple[int, int]] = []
    merge_checkpoint(
        adapter, tiny_dir("llama-untied"), tmp_path / "out", progress=lambda done, total: seen.append((done, total))
    )
    size = (tmp_path / "out" / "model.safetensors").stat().st_size
    assert seen[0] == (0, size)
    assert seen[-1] == (size, size)
    assert seen == sorted(seen)


def test_the_state_of_a_training_run_stays_behind(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """Checkpoints of Trainer and DeepSpeed hold gigabytes of other weights; modules of the model go along."""
    for folder in ("checkpoint-500", "global_step500", "runs", "2_Dense"):
        (base / folder).mkdir()
        (base / folder / "model.safetensors").write_bytes(b"weights")
    receipt = merge_checkpoint(adapter, base, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["2_Dense"]
    assert any("checkpoint-500/, global_step500/, runs/" in note for note in receipt.notes)


def test_merging_twice_is_said(base: Path, adapter: Adapter, tmp_path: Path) -> None:
    """The output of a merge is a base like any other, but one that holds this adapter's change already."""
    first = merge_checkpoint(adapter, base, tmp_path / "once")
    second = merge_checkpoint(adapter, tmp_path / "once", tmp_path / "twice")
    assert not any("twice" in note for note in first.notes)
    assert any("holds twice" in note for note in second.notes)
