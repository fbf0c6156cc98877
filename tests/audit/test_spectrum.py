"""Norm and rank from the factors, held against the singular values of the product itself."""

from __future__ import annotations

from math import inf

import ml_dtypes
import numpy as np
import pytest

from lora_registry.adapter import Kind, Target
from lora_registry.audit import spectrum
from lora_registry.audit.measure import measure
from lora_registry.audit.spectrum import spectra
from lora_registry.ops.arrays import Array, from_array
from lora_registry.ops.change import delta


def linear(a: Array, b: Array, scale: float = 1.0, *, transposed: bool = False) -> Target:
    shape = (a.shape[1], b.shape[0]) if transposed else (b.shape[0], a.shape[1])
    return Target(
        name="w",
        kind=Kind.LINEAR,
        layout=("in", "out") if transposed else ("out", "in"),
        shape=shape,
        tensors={"A": from_array(a), "B": from_array(b)},
        scale=scale,
    )


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
@pytest.mark.parametrize(("out", "inner", "rank"), [(40, 30, 4), (3, 50, 8), (50, 3, 8), (1, 1, 1)])
def test_agrees_with_the_product(dtype: type, out: int, inner: int, rank: int) -> None:
    """Norm and rank are those of the dense s·B·A, for every dtype, and for ranks beyond the shape too."""
    a, b = normal(rank, inner).astype(dtype), normal(out, rank, seed=1).astype(dtype)
    product = -2.5 * b.astype(np.float64) @ a.astype(np.float64)
    (found,) = spectra(linear(a, b, -2.5))
    assert found.norm == pytest.approx(np.linalg.norm(product), rel=1e-12)
    assert found.rank == np.linalg.matrix_rank(product)
    assert found.limit == min(out, inner, rank)


@pytest.mark.parametrize("condition", [1.0, 1e9])
def test_blocks_change_nothing(condition: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that are read in many blocks give what they give in one, by either way to the triangle."""
    target = linear(normal(5, 700), normal(900, 5, seed=1) * np.geomspace(1, 1 / condition, 5))
    (whole,) = spectra(target)
    monkeypatch.setattr(spectrum, "_BLOCK", 64)
    (blocked,) = spectra(target)
    assert blocked.rank == whole.rank == 5
    assert blocked.norm == pytest.approx(whole.norm, rel=1e-13)


@pytest.mark.parametrize("condition", [1.0, 500.0, 2e3, 1e6, 1e10])
def test_weak_directions_count(condition: float) -> None:
    """A direction that is far weaker than the others and not zero is part of the rank, and of the norm."""
    weights = np.geomspace(1, 1 / condition, 6)
    a, b = normal(6, 50), normal(40, 6, seed=1) * weights
    (found,) = spectra(linear(a, b))
    assert found.rank == 6
    assert found.norm == pytest.approx(np.linalg.norm(b @ a), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e-200, 1e200])
@pytest.mark.parametrize("true_rank", [0, 1, 3, 7, 8])
def test_finds_the_rank_that_is_used(true_rank: int, scale: float) -> None:
    """Factors that are products through fewer dimensions are found out, whatever the scale."""
    a = normal(8, true_rank) @ normal(true_rank, 300, seed=1)
    (found,) = spectra(linear(a, normal(200, 8, seed=2), scale))
    assert (found.rank, found.limit) == (true_rank, 8)


def test_factors_that_cancel() -> None:
    """Two factors of full rank whose product is zero change nothing."""
    a, b = np.zeros((4, 20)), np.zeros((20, 4))
    a[:2], b[:, 2:] = normal(2, 20), normal(20, 2, seed=1)
    target = linear(a, b)
    assert spectra(target)[0].rank == 0
    assert measure(target).dead


def test_layout_does_not_matter() -> None:
    """A base that stores its weight transposed has the same change."""
    a, b = normal(3, 9), normal(7, 3, seed=1)
    assert spectra(linear(a, b)) == spectra(linear(a, b, transposed=True))


def test_experts_are_changes_of_their_own() -> None:
    """Each expert has a spectrum; the norm of the target is over all of them."""
    a, b = normal(4, 2, 8), normal(4, 9, 2, seed=1)
    b[2] = 0
    target = Target(
        name="w",
        kind=Kind.EXPERTS,
        layout=("expert", "out", "in"),
        shape=(4, 9, 8),
        tensors={"A": from_array(a), "B": from_array(b)},
        scale=0.5,
    )
    assert [found.rank for found in spectra(target)] == [2, 2, 0, 2]
    norm = measure(target).norm
    assert norm == pytest.approx(np.linalg.norm(delta(target).astype(np.float64)), rel=1e-6)


def test_convolution() -> None:
    """The kernel's axes count as inputs: the norm is that of the kernel that the merge adds."""
    a, b = normal(4, 6, 3, 3), normal(8, 4, 1, 1, seed=1)
    target = Target(
        name="w",
        kind=Kind.CONV,
        layout=("out", "in", "k", "k"),
        shape=(8, 6, 3, 3),
        tensors={"A": from_array(a), "B": from_array(b)},
        scale=3.0,
    )
    (found,) = spectra(target)
    assert found.norm == pytest.approx(np.linalg.norm(delta(target).astype(np.float64)), rel=1e-6)
    assert (found.rank, found.limit) == (4, 4)


def test_grouped_convolution() -> None:
    """With groups B is block-diagonal: each block of outputs sees its own part of the rank only."""
    a, b = normal(4, 6, 3), normal(8, 2, 1, seed=1)
    target = Target(
        name="w",
        kind=Kind.CONV,
        layout=("out", "in", "k"),
        shape=(8, 3, 3),
        tensors={"A": from_array(a), "B": from_array(b)},
        groups=2,
    )
    dense = np.zeros((8, 4))
    dense[:4, :2], dense[4:, 2:] = b[:4, :, 0], b[4:, :, 0]
    (found,) = spectra(target)
    assert found.norm == pytest.approx(np.linalg.norm(dense @ a.reshape(4, 18)), rel=1e-12)
    assert found.rank == 4


def test_overflow_is_said() -> None:
    """A product beyond float64 has an infinite norm, in place of a warning or a crash."""
    (found,) = spectra(linear(normal(2, 5) * 1e200, normal(4, 2, seed=1) * 1e200))
    assert found.norm == inf
