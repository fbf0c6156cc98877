"""Norm and rank of s·B·A from the factors alone: the product, which is as large as the base tensor, is never made.

With B = Q₁R₁ and Aᵀ = Q₂R₂, s·B·A = Q₁ (s·R₁·R₂ᵀ) Q₂ᵀ, and since Q₁ and Q₂ have orthonormal columns, the
r x r core in the middle has the singular values of the whole (Golub and Van Loan, Matrix Computations,
section 5.5). The triangles are built in float64, row block by row block, so that memory is bounded whatever
the size of the vocabulary, and in one of two ways:

- From the Gram matrix, FᵀF = RᵀR, which is a matrix product and ten times as fast, where the factor's
  condition number is below 1000 (Cholesky QR; Yamamoto et al. 2015, ETNA 44, section 2). Two such factors
  have a product of full rank by a margin of 10⁻⁶, far above the tolerance, so that no rank depends on this.
- By Householder QR of the blocks one after the other (TSQR; Demmel et al. 2012, arXiv 0808.2664) elsewhere,
  since squaring a factor would hide what it has below 10⁻⁸ of its norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.ops.arrays import Array, to_array

_BLOCK = 1 << 20  # elements of a factor widened to float64 at a time: 8 MiB
_CONDITION = 1e3  # of a factor, up to which its Gram matrix tells as much as the factor itself


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What the singular values of one change say.

    Attributes:
        norm: ‖s·B·A‖, Frobenius; infinity where it overflows float64.
        rank: singular values above max(out, in) · 2⁻⁵² · |s| · ‖B‖₂ · ‖A‖₂, the error of the computation
            itself: a direction that is not counted cannot be told from zero. Rounding a copied direction to
            bfloat16 makes it count, since it then does change something.
        limit: the largest rank that the shapes allow: min(r, out, in).
    """

    norm: float
    rank: int
    limit: int


def spectra(target: Target) -> tuple[Spectrum, ...]:
    """One spectrum for each change that a low-rank target makes: one for each expert, else one.

    The axes of a convolution's kernel count as inputs. In a grouped one B is block-diagonal, as the two
    convolutions compose.

    Args:
        target: of a low-rank kind, sound by the format's rules, with finite factors.
    """
    a, b = to_array(target.tensors["A"]), to_array(target.tensors["B"])
    if target.kind is Kind.EXPERTS:
        return tuple(_spectrum(target.scale, a[expert], [b[expert]]) for expert in range(len(a)))
    a = a.reshape(len(a), -1)
    b = b.reshape(len(b), -1)
    rows = len(b) // target.groups
    return (_spectrum(target.scale, a, [b[start : start + rows] for start in range(0, len(b), rows)]),)


def _spectrum(scale: float, a: Array, blocks: list[Array]) -> Spectrum:
    """The spectrum of scale · blockdiag(blocks) · a."""
    out = sum(len(block) for block in blocks)
    limit = min(len(a), out, a.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):
        left = _diagonal([_triangle(block) for block in blocks])
        right = _triangle(a.T)
        core = scale * (left @ right.T)
        if not (np.isfinite(core).all() and np.isfinite(left).all() and np.isfinite(right).all()):
            return Spectrum(inf, limit, limit)
        values = np.linalg.svd(core, compute_uv=False)
        error = np.finfo(np.float64).eps * max(out, a.shape[1]) * abs(scale) * _largest(left) * _largest(right)
        return Spectrum(float(np.linalg.norm(values)), int(np.count_nonzero(values > error)), limit)


def _triangle(matrix: Array) -> Array:
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


def _row_blocks(matrix: Array) -> Iterator[Array]:
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
