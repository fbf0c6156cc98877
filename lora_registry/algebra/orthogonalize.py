"""One adapter made to act where others do not: its change without their outputs and their inputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_registry.algebra.core import LowRank, svd
from lora_registry.ops.arrays import Array

_SAME = 1e-10
"""A direction that is so close to those before it is one of them."""


def orthogonalized(matrix: LowRank, others: Sequence[LowRank]) -> LowRank:
    """(I - UUᵀ) · M · (I - VVᵀ), with U and V the outputs and the inputs that ``others`` act on together.

    The result shares no direction with them on either side, so that its inner product with each is zero, whatever
    their weights. Its rank is not higher than that of ``matrix``.

    Args:
        matrix: M.
        others: matrices of the same shape; the spaces of all of them together are taken away.
    """
    if not others:
        return matrix
    u, v = (_joined(sides) for sides in zip(*(spaces(other) for other in others), strict=True))
    return LowRank(matrix.left - u @ (u.T @ matrix.left), matrix.right - (matrix.right @ v) @ v.T)


def _joined(bases: Sequence[Array]) -> Array:
    """An orthonormal basis of the sum of the spaces that ``bases`` span."""
    u, values, _ = np.linalg.svd(np.concatenate(bases, axis=1), full_matrices=False)
    return np.asarray(u[:, values > _SAME])


def spaces(matrix: LowRank) -> tuple[Array, Array]:
    """Orthonormal bases of the outputs (out, k) and of the inputs (in, k) that a matrix of rank k acts on."""
    found = svd(matrix)
    return np.asarray(found.u[:, : found.rank]), np.asarray(found.vt[: found.rank].T)
