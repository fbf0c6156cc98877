"""The numbers of the vectors: their maker's element types and roundings are those that others have built."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

MAKE = Path(__file__).parents[2] / "spec" / "vectors" / "make"
TYPES: dict[str, tuple[Any, Any]] = {
    "F64": (np.float64, np.uint64),
    "F32": (np.float32, np.uint32),
    "F16": (np.float16, np.uint16),
    "BF16": (ml_dtypes.bfloat16, np.uint16),
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, np.uint8),
    "F8_E5M2": (ml_dtypes.float8_e5m2, np.uint8),
}

ROUNDED = """
import sys
from struct import iter_unpack
from floats import rounded
for (value,) in iter_unpack("<d", sys.stdin.buffer.read()):
    print(rounded(sys.argv[1], value))
"""
VALUES = """
import sys
from struct import pack
from floats import value_of
for bits in range(int(sys.argv[2])):
    sys.stdout.buffer.write(pack("<d", float(value_of(sys.argv[1], bits))))
"""


def run(script: str, *arguments: str, data: bytes = b"") -> bytes:
    """Run a script beside the modules of the maker, whose names are free to be those of others."""
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=MAKE, input=data, capture_output=True, check=True).stdout


def samples(dtype: str) -> list[float]:
    """Numbers of a type, what lies halfway between neighbors, and what lies a little beside that; random ones."""
    kind, word = TYPES[dtype]
    bits = np.random.default_rng(7).integers(0, 1 << (8 * word().itemsize - 1), 400).astype(word)
    with np.errstate(invalid="ignore", over="ignore"):
        near, after = (array.view(kind).astype(np.float64) for array in (bits, bits + word(1)))
        half = near / 2 + after / 2
        numbers = np.concatenate([near, half, np.nextafter(half, np.inf), np.nextafter(half, -np.inf)])
    numbers = numbers[np.isfinite(numbers)]
    return [*numbers.tolist(), *(-numbers).tolist(), 0.0, -0.0]


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_rounding(dtype: str) -> None:
    """A binary64 is rounded as NumPy and ml_dtypes round it, where they do it in one step.

    ml_dtypes goes through binary32, so its types are asked about numbers that binary32 holds.
    """
    kind, word = TYPES[dtype]
    numbers = samples(dtype)
    if dtype not in ("F32", "F16"):
        with np.errstate(over="ignore"):
            numbers = [number for number in numbers if float(np.float32(number)) == number]
    assert len(numbers) > 500
    got = list(map(int, run(ROUNDED, dtype, data=struct.pack(f"<{len(numbers)}d", *numbers)).split()))
    with np.errstate(over="ignore", invalid="ignore"):
        expected = np.array(numbers).astype(kind)
    finite = np.isfinite(expected.astype(np.float64))
    assert [bits for bits, is_ in zip(got, finite, strict=True) if is_] == expected.view(word)[finite].tolist()
    assert not np.isfinite(np.array(got, dtype=word).view(kind)[~finite].astype(np.float64)).any()


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_every_number_of_a_small_type(dtype: str) -> None:
    """All patterns of bits stand for the numbers that NumPy and ml_dtypes read in them."""
    kind, word = TYPES[dtype]
    patterns = np.arange(1 << (8 * word().itemsize)).astype(word)
    got = np.frombuffer(run(VALUES, dtype, str(len(patterns))), dtype="<f8")
    with np.errstate(invalid="ignore"):
        expected = patterns.view(kind).astype(np.float64)
    np.testing.assert_array_equal(got, expected)
