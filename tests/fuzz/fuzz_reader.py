"""Coverage-guided fuzzing of the native reader (README.md in this folder): libFuzzer through atheris.

    python tests/fuzz/fuzz_reader.py build/fuzz/corpus -max_total_time=600

Each input is the bytes of a file. Anything but a refusal with findings, or an adapter with all the properties of
``file_properties``, is a crash; so is a file of less than 1 MiB that takes a second or 64 MiB.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from random import Random

import atheris

sys.path[:0] = [str(Path(__file__).resolve().parent)]

with atheris.instrument_imports(include=["lora_registry"]):
    from file_properties import examine
    from mutator import mutated

MEBI = 1 << 20
SECONDS = 1.0
"""Processor time for one input, in which it is read six times, written twice and hashed; instrumented, too."""

MEMORY = 64 * MEBI

WARM_UP = 1000
"""Inputs after which the interpreter's own memory has grown as far as it does."""

FOLDER = Path(tempfile.mkdtemp(prefix="loreg-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
INPUTS = count()


def most_memory() -> int:
    """The most bytes of memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_one_input(data: bytes) -> None:
    """Examine one file, within bounds."""
    warm = next(INPUTS) > WARM_UP
    before, started = most_memory(), time.process_time()
    examine(data, FOLDER)
    seconds, grown = time.process_time() - started, most_memory() - before
    if len(data) < MEBI:
        assert seconds < SECONDS, f"{seconds:.1f} seconds for {len(data)} bytes"
        assert not warm or grown < MEMORY, f"{grown / MEBI:.0f} MiB for {len(data)} bytes"


def mutate(data: bytes, limit: int, seed: int) -> bytes:
    """libFuzzer's own change of bytes now and then, and a change of what the file says otherwise."""
    random = Random(seed)
    if random.random() < 0.1:
        return bytes(atheris.Mutate(data, limit))
    changed = mutated(data, random)
    return changed if len(changed) <= limit else data


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input, custom_mutator=mutate)
    atheris.Fuzz()
