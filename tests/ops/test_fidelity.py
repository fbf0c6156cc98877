"""The four figures, on cases whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from lora_registry.ops.arrays import round_to
from lora_registry.ops.fidelity import fidelity, measure, sums
from lora_registry.ops.fingerprint import fingerprint


def test_a_change_that_is_kept_is_perfect() -> None:
    """Written as wanted: no error, cosine 1."""
    base, wanted = np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    kept = measure(base, wanted, wanted)
    assert (kept.relative_error, kept.cosine, kept.unchanged_fraction) == (0.0, 1.0, 0.5)
    assert kept.delta_ratio == pytest.approx(0.1)


def test_a_change_that_is_lost_is_lost() -> None:
    """Written as the base was: error 1, cosine 0, all unchanged."""
    base, wanted = np.ones(4, np.float32), np.full(4, 1.0001, np.float32)
    lost = measure(base, wanted, round_to(wanted, "BF16"))
    assert (lost.relative_error, lost.cosine, lost.unchanged_fraction) == (1.0, 0.0, 1.0)


def test_no_change_is_perfectly_kept() -> None:
    """An adapter whose B is zero loses nothing."""
    ones = np.ones(4, np.float32)
    assert measure(ones, ones, ones).to_json() == {
        "relative_error": 0.0,
        "cosine": 1.0,
        "unchanged_fraction": 1.0,
        "delta_ratio": 0.0,
    }


def test_json_has_no_infinity() -> None:
    """A change of a tensor of zeros has no ratio."""
    zeros, ones = np.zeros(4, np.float32), np.ones(4, np.float32)
    assert measure(zeros, ones, ones).to_json()["delta_ratio"] is None


def test_blocks_add_up() -> None:
    """Figures taken block by block are those of the whole."""
    random = np.random.default_rng(0)
    base = random.normal(size=1000).astype(np.float32)
    wanted = base + random.normal(size=1000).astype(np.float32) * np.float32(1e-2)
    written = round_to(wanted, "BF16")
    whole, kept_values = measure(base, wanted, written), written.astype(np.float32)
    blocks = [slice(start, start + 300) for start in range(0, 1000, 300)]
    parts = [sums(base[block], wanted[block], kept_values[block]) for block in blocks]
    assert fidelity(parts) == fidelity(reversed(parts))
    delta, kept = (wanted - base).astype(np.float64), written.astype(np.float64) - base
    assert fidelity(parts).relative_error == pytest.approx(whole.relative_error, rel=1e-5)
    assert whole.relative_error == pytest.approx(np.linalg.norm(kept - delta) / np.linalg.norm(delta), rel=1e-3)
    assert whole.cosine == pytest.approx(kept @ delta / np.linalg.norm(kept) / np.linalg.norm(delta), rel=1e-3)
    assert whole.unchanged_fraction == np.mean(written.astype(np.float32) == base)


def test_fingerprints_follow_the_specification() -> None:
    """sha256 over domain, shape and float32 values; strides and blocks make no difference."""
    import hashlib

    array = np.random.default_rng(0).normal(size=(3, 700, 1100)).astype(np.float32)
    expected = hashlib.sha256(b"loreg-base-v1\0[3,700,1100]\0" + array.tobytes()).hexdigest()
    assert fingerprint(array).hex == expected
    assert fingerprint(np.ascontiguousarray(array.transpose(2, 0, 1)).transpose(1, 2, 0)).hex == expected
    whole = np.arange(3)
    assert fingerprint(whole).hex == hashlib.sha256(b"loreg-base-v1\0[3]\0I64\0" + whole.tobytes()).hexdigest()
