"""Sums of low-rank changes, and their singular values, from a core that is no larger than the ranks.

A sum Σ wᵢ·Bᵢ·Aᵢ is one product L·R of the Bᵢ beside each other and the Aᵢ over each other. With L = Q₁R₁ and
Rᵀ = Q₂R₂ the sum is Q₁ (R₁R₂ᵀ) Q₂ᵀ, and since Q₁ and Q₂ have orthonormal columns, the small core in the middle has
the singular values of the whole (Golub and Van Loan, Matrix Computations, section 5.5). That costs
O((out + in)·r²) where the singular values of the matrix itself cost O(out·in·min(out, in)).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt

import numpy as np
from threadpoolctl import threadpool_limits

from lora_registry.algebra.arithmetic import device
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array

_LARGEST = 1e150
"""The square of an element that is larger is near the end of float64."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let BLAS use one thread in the block: factors are tall and thin, and threads wait for each other on them.

    Measured on two cores: the QRs of 2048 x 32 factors take half the time; where the cores have other work too, a
    whole extraction takes a fifth.
    """
    with threadpool_limits(1, "blas"):
        yield


@dataclass(frozen=True, slots=True, eq=False)
class LowRank:
    """The matrix left · right, which is never multiplied out.

    Attributes:
        left: float64 (out, r).
        right: float64 (r, in).
    """

    left: Array
    right: Array

    @property
    def rank(self) -> int:
        """r, the length that the two share; the rank of the product is at most this."""
        return int(self.right.shape[0])

    def __mul__(self, factor: float) -> LowRank:
        return LowRank(self.left * factor, self.right)


def stacked(parts: Sequence[LowRank]) -> LowRank:
    """The sum of ``parts`` as one product, exactly: the ranks add up."""
    return LowRank(
        np.concatenate([part.left for part in parts], axis=1), np.concatenate([part.right for part in parts])
    )


@dataclass(frozen=True, slots=True, eq=False)
class Svd:
    """A singular value decomposition u · diag(values) · vt, its values descending.

    Attributes:
        u: float64 (out, k), orthonormal columns.
        values: float64 (k,).
        vt: float64 (k, in), orthonormal rows.
    """

    u: Array
    values: Array
    vt: Array

    @property
    def noise(self) -> float:
        """The error of the computation, max(out, in) · 2⁻⁵² · σ₁: a value that is not above it may be zero."""
        return float(np.finfo(np.float64).eps * max(len(self.u), self.vt.shape[1]) * self.values.max(initial=0.0))

    @property
    def rank(self) -> int:
        """How many values are above the noise."""
        return int(np.count_nonzero(self.values > self.noise))

    def truncated(self, rank: int) -> LowRank:
        """The best approximation of ``rank`` (Eckart and Young 1936), the root of each value on either side."""
        roots = np.sqrt(self.values[:rank])
        return LowRank(self.u[:, :rank] * roots, roots[:, None] * self.vt[:rank])

    def error(self, rank: int) -> float:
        """Frobenius norm of what :meth:`truncated` leaves out: that of the discarded values, exactly."""
        return float(np.linalg.norm(self.values[rank:]))


def svd(matrix: LowRank) -> Svd:
    """The decomposition of left · right by way of its core."""
    elsewhere = device()
    if elsewhere is not None:
        return Svd(*elsewhere.product_svd(matrix.left, matrix.right, _check_core))
    q1, r1 = np.linalg.qr(matrix.left)
    q2, r2 = np.linalg.qr(matrix.right.T)
    u, values, vt = np.linalg.svd(_core(r1, r2))
    k = len(values)
    return Svd(q1 @ u[:, :k], values, vt[:k] @ q2.T)


def singular_values(matrix: LowRank) -> Array:
    """The singular values alone, descending: float64 (min(out, r, in),)."""
    r1, r2 = (np.asarray(np.linalg.qr(side, mode="r")) for side in (matrix.left, matrix.right.T))
    return np.asarray(np.linalg.svd(_core(r1, r2), compute_uv=False))


def _core(r1: Array, r2: Array) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        core = r1 @ r2.T
    _check_core(float(np.abs(core).max(initial=0.0)))
    return np.asarray(core)


def _check_core(largest: float) -> None:
    if not largest < _LARGEST:
        raise InvalidInputError("a change is so large that its norm is beyond float64; the adapter is broken")


def norm(matrices: Iterable[LowRank]) -> float:
    """Frobenius norm of matrices taken as one, accurate even where what is left is a small difference."""
    return sqrt(sum(float(np.sum(singular_values(matrix) ** 2)) for matrix in matrices))


def inner(one: LowRank, other: LowRank) -> float:
    """⟨X, Y⟩ = tr(XᵀY) of two matrices of one shape: Σ (L₁ᵀL₂) ∘ (R₁R₂ᵀ)."""
    return float(np.sum((one.left.T @ other.left) * (one.right @ other.right.T)))
