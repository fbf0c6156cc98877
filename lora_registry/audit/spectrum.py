"""Norm and rank of a change from its factors alone: the change, which is as large as the base tensor, is never made.

With B = Q₁R₁ and Aᵀ = Q₂R₂, s·B·A = Q₁ (s·R₁·R₂ᵀ) Q₂ᵀ, and since Q₁ and Q₂ have orthonormal columns, the
r x r core in the middle has the singular values of the whole (Golub and Van Loan, Matrix Computations,
section 5.5). The triangles are built in float64, row block by row block, so that memory is bounded whatever
the size of the vocabulary, and in one of two ways:

- From the Gram matrix, FᵀF = RᵀR, which is a matrix product and ten times as fast, where the factor's
  condition number is below 1000 (Cholesky QR; Yamamoto et al. 2015, ETNA 44, section 2). Two such factors
  have a product of full rank by a margin of 10⁻⁶, far above the tolerance, so that no rank depends on this.
- By Householder QR of the blocks one after the other (TSQR; Demmel et al. 2012, arXiv 0808.2664) elsewhere,
  since squaring a factor would hide what it has below 10⁻⁸ of its norm.

The composed kinds reduce to this. (B1·A1) ∘ (B2·A2) is a product of rank r1·r2, of the products of columns of B1
and B2 with those of rows of A1 and A2 (Slyusar 1999; Hyeon-Woo et al. 2022, arXiv 2108.06098). C1 ⊗ C2 has as
singular values the products of those of C1 and C2 (Golub and Van Loan, section 12.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import TypeAlias

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.ops.arrays import Array, to_array

_BLOCK = 1 << 20  # elements of a factor widened to float64 at a time: 8 MiB
_CONDITION = 1e3  # of a factor, up to which its Gram matrix tells as much as the factor itself
_CORE = 1024  # rows of the largest core of a composed kind that is looked at: 8 MiB


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What the singular values of one change say.

    Attributes:
        norm: ‖ΔW‖, Frobenius; infinity where it overflows float64.
        rank: singular values above max(out, in) · 2⁻⁵² · |s| · ‖B‖₂ · ‖A‖₂, the error of the computation
            itself: a direction that is not counted cannot be told from zero. Rounding a copied direction to
            bfloat16 makes it count, since it then does change something. Of a Kronecker product: of both sides.
        limit: the largest rank that the shapes allow: min(r, out, in), with r1·r2 for LoHa; for LoKr the product
            of the limits of both sides.
    """

    norm: float
    rank: int
    limit: int


def spectra(target: Target) -> tuple[Spectrum, ...]:
    """One spectrum for each change that a factored target makes: one for each expert, else one.

    The axes of a convolution's kernel count as inputs. In a grouped one B is block-diagonal, as the two
    convolutions compose.

    Args:
        target: of a kind with factors, sound by the format's rules, with finite factors.

    Returns:
        Nothing where the core of a composed change is too large to be looked at: r1·r2 of LoHa, or the smaller
        side of a whole C of LoKr, above 1024.
    """
    if target.kind is Kind.LOHA:
        return _of_loha(target)
    if target.kind is Kind.LOKR:
        return _of_lokr(target)
    a, b = to_array(target.tensors["A"]), to_array(target.tensors["B"])
    if target.kind is Kind.EXPERTS:
        return tuple(_spectrum(target.scale, a[expert], [b[expert]]) for expert in range(len(a)))
    a, b = _matrix(target, "A"), _matrix(target, "B")
    rows = len(b) // target.groups
    return (_spectrum(target.scale, a, [b[start : start + rows] for start in range(0, len(b), rows)]),)


def _matrix(target: Target, role: str) -> Array:
    array = to_array(target.tensors[role])
    return array.reshape(len(array), -1)


def _of_loha(target: Target) -> tuple[Spectrum, ...]:
    a1, a2, b1, b2 = (_matrix(target, role) for role in ("A1", "A2", "B1", "B2"))
    if len(a1) * len(a2) > _CORE:
        return ()
    left, right = _Paired(b1, b2), _Paired(a1.T, a2.T)
    return (_of_factors(target.scale, [left], right),)


def _of_lokr(target: Target) -> tuple[Spectrum, ...]:
    found = []
    for number in "12":
        if f"C{number}" in target.tensors:
            whole = _matrix(target, f"C{number}")
            if min(whole.shape) > _CORE:
                return ()
            found.append(_of_whole(whole))
        else:
            found.append(_spectrum(1.0, _matrix(target, f"A{number}"), [_matrix(target, f"B{number}")]))
    first, second = found
    norm = abs(target.scale) * first.norm * second.norm
    limit = first.limit * second.limit
    if not isfinite(norm):
        return (Spectrum(inf, limit, limit),)
    return (Spectrum(norm, first.rank * second.rank if target.scale else 0, limit),)


def _of_whole(matrix: Array) -> Spectrum:
    """The spectrum of a matrix that is no product."""
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    values = np.linalg.svd(_triangle(tall), compute_uv=False)
    error = np.finfo(np.float64).eps * len(tall) * values[0]
    return Spectrum(float(np.linalg.norm(values)), int(np.count_nonzero(values > error)), tall.shape[1])


class _Paired:
    """The matrix (n, r1·r2) of all products of a column of ``first`` (n, r1) with one of ``second`` (n, r2)."""

    def __init__(self, first: Array, second: Array) -> None:
        self._first, self._second = first, second
        self.shape = (len(first), first.shape[1] * second.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Array:
        """Some of its rows in float64, made when they are asked for."""
        first, second = self._first[rows].astype(np.float64), self._second[rows].astype(np.float64)
        return (first[:, :, None] * second[:, None, :]).reshape(len(first), -1)


_Factor: TypeAlias = "Array | _Paired"


def _spectrum(scale: float, a: Array, blocks: list[Array]) -> Spectrum:
    """The spectrum of scale · blockdiag(blocks) · a."""
    return _of_factors(scale, blocks, a.T)


def _of_factors(scale: float, blocks: Sequence[_Factor], across: _Factor) -> Spectrum:
    """The spectrum of scale · blockdiag(blocks) · acrossᵀ."""
    out, inner = sum(len(block) for block in blocks), len(across)
    limit = min(across.shape[1], out, inner)
    with np.errstate(over="ignore", invalid="ignore"):
        left = _diagonal([_triangle(block) for block in blocks])
        right = _triangle(across)
        core = scale * (left @ right.T)
        if not (np.isfinite(core).all() and np.isfinite(left).all() and np.isfinite(right).all()):
            return Spectrum(inf, limit, limit)
        values = np.linalg.svd(core, compute_uv=False)
        error = np.finfo(np.float64).eps * max(out, inner) * abs(scale) * _largest(left) * _largest(right)
        return Spectrum(float(np.linalg.norm(values)), int(np.count_nonzero(values > error)), limit)


def _triangle(matrix: _Factor) -> Array:
    """R with RᵀR = ``matrix``ᵀ``matrix`` for a matrix (n, r): float64, at most r rows."""
    gram = np.zeros((matrix.shape[1], matrix.shape[1]))
    for block in _row_blocks(matrix):
        gram += block.T @ block
    if _well_conditioned(gram):
        return np.asarray(np.linalg.cholesky(gram)).T
    triangle: Array = np.empty((0, matrix.shape[1]), np.float64)
    for block in _row_blocks(matrix):
        triangle = np.asarray(np.linalg.qr(np.vstack((triangle, block)), mode="r"))
    return triangle


def _well_conditioned(gram: Array) -> bool:
    """Whether the factor behind a Gram matrix has a condition number below the limit."""
    if not np.isfinite(gram).all():
        return False
    values = np.linalg.eigvalsh(gram)
    return bool(values[0] * _CONDITION**2 > values[-1])


def _row_blocks(matrix: _Factor) -> Iterator[Array]:
    rows = max(_BLOCK // matrix.shape[1], matrix.shape[1])
    for start in range(0, len(matrix), rows):
        yield matrix[start : start + rows].astype(np.float64)


def _diagonal(blocks: list[Array]) -> Array:
    """The block-diagonal matrix of ``blocks``."""
    result = np.zeros((sum(len(block) for block in blocks), sum(block.shape[1] for block in blocks)))
    row = column = 0
    for block in blocks:
        result[row : row + len(block), column : column + block.shape[1]] = block
        row, column = row + len(block), column + block.shape[1]
    return result


def _largest(matrix: Array) -> float:
    """‖matrix‖₂, the largest singular value."""
    return float(np.linalg.norm(matrix, 2))
