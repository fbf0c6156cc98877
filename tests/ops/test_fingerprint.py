"""A fingerprint is that of the values, whichever way round and in whatever float type they are stored."""

from __future__ import annotations

import hashlib

import ml_dtypes
import numpy as np
import pytest

from lora_registry.adapter import LAYOUTS, Kind, Layout, Target
from lora_registry.ops.fingerprint import fingerprint, target_fingerprint

BOTH_WAYS = [
    (Kind.LINEAR, ("out", "in"), ("in", "out")),
    (Kind.LOHA, ("out", "in"), ("in", "out")),
    (Kind.LOKR, ("out", "in"), ("in", "out")),
    (Kind.EXPERTS, ("expert", "out", "in"), ("expert", "in", "out")),
]


def stored(kind: Kind, layout: Layout) -> Target:
    """A target of which only kind and layout matter."""
    return Target(name="w", kind=kind, layout=layout, shape=None, tensors={})


@pytest.mark.parametrize(("kind", "straight", "swapped"), BOTH_WAYS)
def test_a_transposed_copy_has_the_same_fingerprint(kind: Kind, straight: Layout, swapped: Layout) -> None:
    """Outputs come before inputs, also in more elements than one block, and in a narrower float type."""
    array = np.random.default_rng(0).normal(size=(2, 700, 1100)[-len(straight) :]).astype(ml_dtypes.bfloat16)
    copy = np.ascontiguousarray(np.swapaxes(array, -1, -2)).astype(np.float32)
    expected = fingerprint(array)
    assert target_fingerprint(stored(kind, straight), array) == expected
    assert target_fingerprint(stored(kind, swapped), copy) == expected
    assert target_fingerprint(stored(kind, straight), copy) != expected


def test_a_square_matrix_is_told_from_its_transpose() -> None:
    """No shape tells them apart; the fingerprint does."""
    array = np.arange(9, dtype=np.float32).reshape(3, 3)
    linear = stored(Kind.LINEAR, ("out", "in")), stored(Kind.LINEAR, ("in", "out"))
    assert target_fingerprint(linear[0], array) != target_fingerprint(linear[1], array)
    logical = hashlib.sha256(b"loreg-base-v1\0[3,3]\0" + array.T.tobytes()).hexdigest()
    assert target_fingerprint(linear[1], array).hex == logical


@pytest.mark.parametrize("kind", sorted(set(Kind) - {kind for kind, *_ in BOTH_WAYS}))
def test_what_has_one_order_is_taken_as_stored(kind: Kind) -> None:
    """The rows of an embedding are its inputs, and stay first; a whole tensor has no axes of its own."""
    for layout in LAYOUTS[kind]:
        shape = (2, 3, 4, 5, 6)[: len(layout) or 3]
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        assert target_fingerprint(stored(kind, layout), array) == fingerprint(array)
