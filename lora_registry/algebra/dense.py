"""The largest singular values of a matrix that is there as a whole, and the error of leaving out the others.

Small matrices are decomposed exactly. Of large ones a random range is drawn (Halko, Martinsson and Tropp 2011,
SIAM Review 53, algorithms 4.4 and 5.1, with four rounds of power iteration) and doubled until it holds what is to
be kept; a large matrix that needs more than a quarter of its directions is decomposed exactly after all. The error
is measured on the matrix itself, not estimated.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from lora_registry.algebra.arithmetic import Dense, Triple, device
from lora_registry.algebra.core import LowRank, Svd
from lora_registry.algebra.truncation import Truncation
from lora_registry.ops.arrays import Array

EXACT = 384
"""The smaller side of the largest matrix that is always decomposed exactly."""

_SPARE = 10  # directions drawn beyond those that are wanted (the paper's oversampling)
_ROUNDS = 4  # of power iteration
_BLOCK = 1 << 20  # elements looked at together


@dataclass(frozen=True, slots=True, eq=False)
class Approximation:
    """A matrix of low rank in the place of a dense one.

    Attributes:
        matrix: the approximation.
        norm: ‖M‖ of the dense one, Frobenius.
        error: ‖M - matrix‖, Frobenius, measured.
        largest: σ₁, the largest singular value.
    """

    matrix: LowRank
    norm: float
    error: float
    largest: float


def approximate(matrix: Array, truncation: Truncation, *, floor: float = 0.0) -> Approximation:
    """The best approximation of ``matrix`` that ``truncation`` allows.

    Args:
        matrix: (out, in), float32 or float64, finite.
        truncation: what may be left out.
        floor: singular values at or below it are noise; the caller knows why.
    """
    elsewhere = device()
    held = _Here(matrix) if elsewhere is None else elsewhere.hold(matrix)
    total = held.square()
    found, rank = _enough(held, matrix.shape, truncation, total, floor)
    kept = found.truncated(rank)
    return Approximation(kept, sqrt(total), held.distance(kept.left, kept.right), float(found.values[0]))


def _enough(held: Dense, shape: tuple[int, ...], truncation: Truncation, total: float, floor: float) -> tuple[Svd, int]:
    """As many singular values as ``truncation`` needs, and how many of them stay."""
    smaller = min(shape) if truncation or floor else 0  # everything is kept: there is nothing to draw
    wanted = truncation.rank or 16
    while smaller > EXACT and wanted + _SPARE <= smaller // 4:
        found = Svd(*held.drawn(wanted))
        rank = truncation.keep(found.values, total, floor)
        if rank is not None:
            return found, rank
        wanted *= 2
    found = Svd(*held.decomposed())
    rank = truncation.keep(found.values, total, max(floor, found.noise))
    return found, len(found.values) if rank is None else rank


class _Here:
    """A matrix that numpy decomposes."""

    def __init__(self, matrix: Array) -> None:
        self._matrix = matrix

    def square(self) -> float:
        return sum(float(np.sum(block.astype(np.float64) ** 2)) for block in _row_blocks(self._matrix))

    def decomposed(self) -> Triple:
        u, values, vt = np.linalg.svd(self._matrix.astype(np.float64), full_matrices=False)
        return u, values, vt

    def drawn(self, wanted: int) -> Triple:
        matrix = self._matrix
        random = np.random.default_rng(0)
        wide = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
        sketch = wide @ random.standard_normal((wide.shape[1], wanted + _SPARE)).astype(matrix.dtype)
        for _ in range(_ROUNDS):
            sketch = wide @ np.linalg.qr(wide.T @ np.linalg.qr(sketch)[0])[0]
        basis = np.linalg.qr(sketch.astype(np.float64))[0]
        u, values, vt = np.linalg.svd(basis.T.astype(matrix.dtype) @ wide, full_matrices=False)
        u, values, vt = (basis @ u)[:, :wanted], values[:wanted].astype(np.float64), vt[:wanted].astype(np.float64)
        return (u, values, vt) if wide is matrix else (vt.T, values, u.T)

    def distance(self, left: Array, right: Array) -> float:
        square, start = 0.0, 0
        for block in _row_blocks(self._matrix):
            square += float(np.sum((block - left[start : start + len(block)] @ right) ** 2))
            start += len(block)
        return sqrt(square)


def _row_blocks(matrix: Array) -> list[Array]:
    step = max(1, _BLOCK // max(1, matrix.shape[1]))
    return [matrix[start : start + step] for start in range(0, len(matrix), step)]
