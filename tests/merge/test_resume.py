"""Merges that are killed: what is on the disk is not done again, what is another merge is refused, nothing is half."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, NotFoundError, UsageError
from lora_registry.merge import engine, journal
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.staging import folder_for, staging
from lora_registry.ops.arrays import from_array

WORKER = """
import sys
from pathlib import Path
import numpy as np
from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.merge import journal
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import from_array
journal.SECONDS = 0.01
base, out = map(Path, sys.argv[1:3])
resume, layers, rows, rank = map(int, sys.argv[3:])
def target(name):
    random = np.random.default_rng(sum(name.encode()))
    factors = {"A": random.normal(size=(rank, 512)), "B": random.normal(size=(rows, rank)) / 100}
    tensors = {role: from_array(array.astype(np.float32)) for role, array in factors.items()}
    return Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(rows, 512), tensors=tensors)
adapter = Adapter(targets=tuple(target(f"layers.{number}.weight") for number in range(layers)))
print("begins", flush=True)
merge_checkpoint(adapter, base, out, resume=bool(resume), workers=2)
"""


def make_base(folder: Path, layers: int, rows: int) -> Path:
    """Two shards of ``layers`` matrices of float32, and a tensor in each that no adapter changes."""
    folder.mkdir()
    weights = {}
    for shard in range(2):
        tensors = {
            f"layers.{number}.weight": np.random.default_rng(number).normal(size=(rows, 512)).astype(np.float32)
            for number in range(shard, layers, 2)
        }
        tensors[f"kept.{shard}"] = np.arange(600_000, dtype=np.float32)
        save_file(tensors, folder / f"model-{shard}.safetensors")
        weights.update(dict.fromkeys(tensors, f"model-{shard}.safetensors"))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weights}))
    (folder / "config.json").write_text("{}")
    return folder


def digests(folder: Path) -> dict[str, Digest]:
    """Name to digest of every file in a folder."""
    return {path.name: Digest.of_file(path) for path in folder.iterdir()}


def start(base: Path, out: Path, layers: int, rows: int, rank: int, *, resume: bool) -> subprocess.Popen[str]:
    """A process that merges, whose imports are over when this returns."""
    numbers = [str(number) for number in (int(resume), layers, rows, rank)]
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(base), str(out), *numbers], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begins\n"
    return process


def journaled(out: Path) -> int:
    """Blocks that stand in the journal of the merge into ``out``."""
    path = folder_for(out) / journal.NAME
    lines = path.read_bytes().splitlines() if path.is_file() else []
    records = []
    for line in lines[1:]:
        try:
            records.append(json.loads(line))
        except ValueError:  # cut off by the kill
            break
    return sum(len(record["blocks"]) for record in records)


@pytest.mark.slow
def test_twenty_kills_at_any_moment(tmp_path: Path) -> None:
    """After each, nothing has the final name and the base is untouched; what is resumed ends in the same bytes."""
    size = {"layers": 12, "rows": 8192, "rank": 64}
    base = make_base(tmp_path / "base", size["layers"], size["rows"])
    before, times = digests(base), {path: path.stat().st_mtime_ns for path in base.iterdir()}
    whole = start(base, tmp_path / "whole", **size, resume=False)
    began = time.monotonic()
    assert whole.wait() == 0
    duration = time.monotonic() - began
    expected, out = digests(tmp_path / "whole"), tmp_path / "out"
    moments = random.Random(20261124)
    kills, resumed, ended = 0, 0, 0
    while kills < 20:
        # One in five begins anew, so that kills fall into every part of the work.
        again = folder_for(out).is_dir() and bool(journaled(out)) and kills % 5 != 0
        resumed += again
        process = start(base, out, **size, resume=again)
        time.sleep(moments.uniform(0, 0.6 * duration))
        process.send_signal(signal.SIGKILL)
        code = process.wait()
        assert code in (0, -signal.SIGKILL)
        if code == 0 or out.exists():
            assert digests(out) == expected
            ended += 1
            for path in out.iterdir():
                path.unlink()
            out.rmdir()
            continue
        kills += 1
        assert not out.exists()
        assert {path: path.stat().st_mtime_ns for path in base.iterdir()} == times
    assert resumed > 5
    last = start(base, out, **size, resume=bool(journaled(out)))
    assert last.wait() == 0
    assert digests(out) == expected
    assert digests(base) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "whole"]


def test_a_kill_while_a_new_merge_clears_the_old_one_leaves_nothing_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal goes first: it never speaks of blocks whose files are gone already."""
    import shutil

    place = folder_for(tmp_path / "out")
    (place / "files").mkdir(parents=True)
    (place / journal.NAME).write_text("{}")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt), staging(tmp_path / "out", resume=False):
        pass
    assert not (place / journal.NAME).exists()


def adapter_for(layers: int, rows: int, seed: int = 0) -> Adapter:
    """A random change of every layer of :func:`make_base`."""
    rng = np.random.default_rng(seed)
    targets = []
    for number in range(layers):
        factors = {"A": rng.normal(size=(4, 512)), "B": rng.normal(size=(rows, 4)) / 100}
        tensors = {role: from_array(array.astype(np.float32)) for role, array in factors.items()}
        name, shape = f"layers.{number}.weight", (rows, 512)
        targets.append(Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=shape, tensors=tensors))
    return Adapter(targets=tuple(targets))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A small checkpoint of a few dozen blocks."""
    return make_base(tmp_path / "base", 4, 2048)


def cut_short(adapter: Adapter, base: Path, out: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """Merge and stop as a kill would: what was made stays, and the lock is gone."""
    import shutil

    def stop(done: int, total: int) -> None:
        if done > total * 0.6:
            time.sleep(0.1)  # the journal is written meanwhile
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(journal, "SECONDS", 0.01)
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            merge_checkpoint(adapter, base, out, MergeOptions(**options), workers=1, progress=stop)  # type: ignore[arg-type]
    assert journaled(out) > 5
    assert not out.exists()


def test_only_what_is_not_on_the_disk_is_done_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks of the journal are not computed a second time, and the output is the same to the last byte."""
    adapter = adapter_for(4, 2048)
    merge_checkpoint(adapter, base, tmp_path / "whole")
    for hashed in (True, False):
        out = tmp_path / f"out{hashed}"
        cut_short(adapter, base, out, monkeypatch, hashed=hashed)
        known, computed = journaled(out), []
        run = engine.Output.process

        def process(self, block, slot, room, release, run=run, computed=computed):
            result = run(self, block, slot, room, release)
            computed.append(result[1])
            return result

        monkeypatch.setattr(engine.Output, "process", process)
        merge_checkpoint(adapter, base, out, MergeOptions(hashed=hashed), resume=True)
        monkeypatch.setattr(engine.Output, "process", run)
        assert computed.count(False) == known
        assert computed.count(True) > 0
        for name in digests(tmp_path / "whole"):
            if hashed or name != "loreg-receipt.json":
                assert Digest.of_file(out / name) == Digest.of_file(tmp_path / "whole" / name)
        assert not folder_for(out).exists()


def test_another_merge_is_not_resumed(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another adapter, other options, a base that changed: refused by name, and what was there can still be resumed."""
    adapter, out = adapter_for(4, 2048), tmp_path / "out"
    cut_short(adapter, base, out, monkeypatch)
    with pytest.raises(ConflictError, match="cannot be resumed: adapter changed since"):
        merge_checkpoint(adapter_for(4, 2048, seed=1), base, out, resume=True)
    with pytest.raises(ConflictError, match="cannot be resumed: options changed since"):
        merge_checkpoint(adapter, base, out, MergeOptions(dtype="BF16"), resume=True)
    file, times = base / "model-1.safetensors", (base / "model-1.safetensors").stat()
    os.utime(file, (1, 1))
    with pytest.raises(ConflictError, match="cannot be resumed: base changed since"):
        merge_checkpoint(adapter, base, out, resume=True)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    merge_checkpoint(adapter, base, out, resume=True)
    merge_checkpoint(adapter, base, tmp_path / "whole")
    assert digests(out) == digests(tmp_path / "whole")


def test_what_is_left_of_a_kill_goes_with_a_merge_that_begins_anew(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without asking for it, nothing old is used, and nothing is left behind."""
    out = tmp_path / "out"
    cut_short(adapter_for(4, 2048, seed=1), base, out, monkeypatch)
    merge_checkpoint(adapter_for(4, 2048), base, out)
    merge_checkpoint(adapter_for(4, 2048), base, tmp_path / "whole")
    assert digests(out) == digests(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "out", "whole"]


def test_there_must_be_something_to_resume(base: Path, tmp_path: Path) -> None:
    """A merge that was never begun, or whose journal has no first line yet."""
    adapter, out = adapter_for(4, 2048), tmp_path / "out"
    with pytest.raises(NotFoundError, match="no interrupted merge into"):
        merge_checkpoint(adapter, base, out, resume=True)
    folder_for(out).mkdir()
    with pytest.raises(NotFoundError, match="no interrupted merge to resume"):
        merge_checkpoint(adapter, base, out, resume=True)
    (folder_for(out) / journal.NAME).write_text('{"merge": {"ada')
    with pytest.raises(NotFoundError, match="nothing to resume"):
        merge_checkpoint(adapter, base, out, resume=True)


def test_two_merges_into_one_place_do_not_meet(base: Path, tmp_path: Path) -> None:
    """The second is refused while the first lives."""
    out = tmp_path / "out"
    with staging(out, resume=False), pytest.raises(ConflictError, match=r"another merge into .* is under way"):
        merge_checkpoint(adapter_for(4, 2048), base, out)
    merge_checkpoint(adapter_for(4, 2048), base, out)


def test_a_line_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    """Nor does anything after a line that is damaged; what is sound before it counts."""
    path, identity = tmp_path / "journal.jsonl", {"adapter": "x"}
    length = journal.begin(path, identity)
    with journal.Journal(path, length, lambda: None) as opened:
        opened.finished("a", 3, None)
    sound = path.stat().st_size
    for tail in (b'{"blocks": [["a", 4, nul', b"\0\0\0\0\n" + b'{"blocks": [["a", 5, null]]}\n'):
        path.write_bytes(path.read_bytes()[:sound] + tail)
        assert journal.resume(path, identity) == (sound, {"a": {3: None}})


def test_what_stands_in_the_journal_was_synced_before(tmp_path: Path) -> None:
    """The order of a power cut: first the bytes, then the line that says so."""
    path, seen = tmp_path / "journal.jsonl", []
    length = journal.begin(path, {})
    with journal.Journal(path, length, lambda: seen.append(path.stat().st_size)) as opened:
        opened.finished("a", 0, None)
    assert seen == [length]
    assert path.stat().st_size > length


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("dtype", ["BF16", ("touched=F64",)])
def test_a_merge_that_makes_headers_anew_goes_on_too(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: object, *, hashed: bool
) -> None:
    """Another element type, like rows that are added or a quantization that ends, changes the header of a file."""
    adapter, out = adapter_for(4, 2048), tmp_path / "out"
    options = {"dtype": dtype, "hashed": hashed}
    merge_checkpoint(adapter, base, tmp_path / "whole", MergeOptions(**options))  # type: ignore[arg-type]
    cut_short(adapter, base, out, monkeypatch, **options)
    merge_checkpoint(adapter, base, out, MergeOptions(**options), resume=True)  # type: ignore[arg-type]
    assert digests(out) == digests(tmp_path / "whole")


@pytest.mark.parametrize("name", ["loreg-journal", "loreg-merge-0", "loreg-merge-1"])
@pytest.mark.parametrize("begun", [True, False])
def test_an_interrupt_while_a_thread_begins_leaves_none_behind(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, *, begun: bool
) -> None:
    """Such a thread would keep the process from ending, or write into files that are closed."""
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name != name or begun:
            start(thread)
        if thread.name == name:
            raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        merge_checkpoint(adapter_for(4, 2048), base, tmp_path / "out", workers=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loreg-")]
    assert [path.name for path in tmp_path.iterdir()] == [base.name]


def test_a_merge_that_does_not_wait_for_the_disk_is_the_same(base: Path, tmp_path: Path) -> None:
    """The same bytes, no journal, and so nothing to resume."""
    adapter = adapter_for(4, 2048)
    merge_checkpoint(adapter, base, tmp_path / "out")
    merge_checkpoint(adapter, base, tmp_path / "quick", durable=False)
    assert digests(tmp_path / "out") == digests(tmp_path / "quick")
    with pytest.raises(UsageError, match="cannot be resumed"):
        merge_checkpoint(adapter, base, tmp_path / "again", durable=False, resume=True)
