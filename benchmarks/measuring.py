"""Processes measured from outside: the clock, the processors, and the peaks of their memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One process: seconds of the clock, seconds of the processors, peaks in megabytes.

    Resident memory counts pages of mapped files, which the kernel takes back at will; anonymous memory does not.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    peak_anonymous_mb: float


def measure(command: list[str]) -> Run:
    """Run a process to its end and watch its memory.

    The kernel's own peak of resident memory (getrusage) would count what this process had when it forked.

    Raises:
        RuntimeError: the process failed; the message is the end of what it said.
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
        raise RuntimeError(said.decode(errors="replace").strip()[-2000:])
    return Run(wall, usage.ru_utime + usage.ru_stime, peaks["VmHWM:"] / 1e6, peaks["RssAnon:"] / 1e6)


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


def medians(runs: Iterable[Run]) -> dict[str, float]:
    """The median of every figure."""
    rows = [asdict(run) for run in runs]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def touch_memory() -> int:
    """Use half of the free memory once and give it back; returns its bytes.

    Otherwise the first contestant pays for what a virtual machine has not yet got from its host.
    """
    free = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line
    )
    size = free * 1024 // 2
    script = f"import mmap\nm = mmap.mmap(-1, {size})\nfor at in range(0, {size}, 4096): m[at] = 1"
    subprocess.run(["python3", "-c", script], check=True)
    return size


def load() -> float:
    """The load of the machine over the last minute."""
    return os.getloadavg()[0]
