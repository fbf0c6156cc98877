"""What is left when pushes are killed, crowded, or run out of disk."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from small_adapters import small_adapter

from lora_registry.errors import MachineError
from lora_registry.findings import Finding, Severity
from lora_registry.registry import Registry
from lora_registry.store.events import chain_problem
from lora_registry.store.store import Store

Start = Callable[..., "subprocess.Popen[str]"]


def serious(findings: object) -> list[Finding]:
    assert isinstance(findings, list)
    return [finding for finding in findings if finding.severity is not Severity.NOTE]


@pytest.mark.slow
def test_killing_push_at_any_moment_leaves_a_sound_registry(registry: Registry, start_worker: Start) -> None:
    """Twenty kills at random moments: what was reported as done is there, and nothing is broken."""
    moments = random.Random(20261123)
    done: list[str] = []
    for attempt in range(20):
        worker = start_worker(registry.root, f"w{attempt}", 1000, 200_000)  # 6.4 MB a push
        assert worker.stdout is not None
        if attempt % 4:
            done.append(worker.stdout.readline().strip())  # the imports are over: the kill falls into a push
            time.sleep(moments.uniform(0, 0.25))
        else:
            time.sleep(moments.uniform(0.1, 1.5))  # or into the making of the registry
        worker.send_signal(signal.SIGKILL)
        done += worker.communicate()[0].splitlines()
        if registry.root.exists() and (registry.root / "loreg-store.json").exists():
            assert serious(registry.fsck()) == []
    listed = {str(record.reference) for record in registry.list()}
    assert set(done) - {""} <= listed
    assert len(listed) > 15
    registry.push(small_adapter(1), "after/all:1")
    registry.gc(grace=0)
    assert registry.fsck() == []


@pytest.mark.slow
def test_eight_processes_push_at_once_and_nothing_is_lost(registry: Registry, start_worker: Start) -> None:
    """Every tag of every process is there, the shared tag moved each time, and the chain is whole."""
    workers = [start_worker(registry.root, f"w{number}", 6, 16) for number in range(8)]
    outputs = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 8, [error for _, error in outputs]
    tags = {str(record.reference) for record in registry.list()}
    assert tags == {f"many/w{number}:{index}" for number in range(8) for index in range(1, 7)} | {"many/shared:latest"}
    log = list(reversed(registry.log()))
    assert chain_problem(log) is None
    assert Counter(event.repository for event in log)["many/shared"] == 48
    shared = [event for event in log if event.repository == "many/shared"]
    assert all(later.before == earlier.after for earlier, later in pairwise(shared))
    assert registry.fsck() == []


def test_a_collection_beside_pushes_takes_nothing_that_they_need(registry: Registry, start_worker: Start) -> None:
    """With no grace at all, while other processes push: the lock keeps their blobs."""
    workers = [start_worker(registry.root, f"w{number}", 8, 16) for number in range(3)]
    while any(worker.poll() is None for worker in workers):
        if (registry.root / "loreg-store.json").exists():
            registry.gc(grace=0)
        time.sleep(0.02)
    assert [worker.wait() for worker in workers] == [0, 0, 0], [worker.communicate() for worker in workers]
    registry.gc(grace=0)
    assert registry.fsck() == []
    assert len(registry.list()) == 25


def test_a_push_that_the_disk_has_no_room_for_leaves_nothing(registry: Registry, start_worker: Start) -> None:
    """A file that cannot grow is a full disk: one line, exit code 10, and not a byte left."""
    registry.push(small_adapter(1), "a:1")
    before = files(registry.root)
    worker = start_worker(registry.root, "big", 1, 200_000, 1 << 20)
    _, error = worker.communicate()
    assert worker.returncode == 10
    assert len(error.splitlines()) == 1
    assert files(registry.root) == before
    assert registry.fsck() == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB; only root may mount one, and the test above needs none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False, capture_output=True
    )
    if mounted.returncode:
        folder = tmp_path / "limited"
        folder.mkdir()
    yield folder
    if not mounted.returncode:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


def test_a_disk_that_fills_up_slowly_never_breaks_the_registry(
    tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pushes until one fails, wherever that is: blob, database or journal. What was there before is sound."""
    registry = Registry.open(tiny_disk / "registry")
    if not os.path.ismount(tiny_disk):
        _fill_up(monkeypatch)
    done: set[str] = set()

    def push_many() -> None:
        for seed in range(2000):
            registry.push(small_adapter(seed, width=4 + seed % 7), f"a:{seed}")
            done.add(f"a:{seed}")

    with pytest.raises(MachineError, match="full"):
        push_many()
    assert len(done) > 3
    assert serious(registry.fsck()) == []
    assert {str(record.reference) for record in registry.list()} == done


def _fill_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a small disk, let the journal be what does not fit after a while."""
    from lora_registry.store import journal

    written = 0
    real = journal._write_all

    def limited(stream: object, data: bytes) -> None:
        nonlocal written
        written += 1
        if written > 20:
            raise OSError(28, "No space left on device")
        real(stream, data)  # type: ignore[arg-type]

    monkeypatch.setattr(journal, "_write_all", limited)


def test_a_commit_that_did_not_happen_is_taken_back(registry: Registry, store: Store) -> None:
    """Killed between journal and commit: fsck notes it, the next write drops it, and the log is whole."""
    registry.push(small_adapter(1), "a:1")
    registry.push(small_adapter(2), "a:2")
    kept = store.journal.path.read_bytes()
    database = store.layout.database.read_bytes()
    registry.push(small_adapter(3), "a:3")
    store.layout.database.write_bytes(database)  # as it was before the commit
    assert {finding.rule for finding in registry.fsck()} == {"S-004", "S-014"}
    assert serious(registry.fsck()) == []
    registry.tag("a:1", "one")
    assert store.journal.path.read_bytes().startswith(kept)
    assert [event.tag for event in registry.log()] == ["one", "2", "1"]
    registry.gc(grace=0)
    assert registry.fsck() == []


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}
