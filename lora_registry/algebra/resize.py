"""Fewer ranks for the same adapter, with the error certified: the best approximation, from the factors alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt

import numpy as np

from lora_registry.adapter import LOW_RANK, Adapter, Target
from lora_registry.algebra.combinable import refuse_magnitude
from lora_registry.algebra.core import LowRank, Svd, one_thread, svd
from lora_registry.algebra.lineage import Parent, descendant
from lora_registry.algebra.lowering import DENSE, lowered
from lora_registry.algebra.recipe import check_dtype
from lora_registry.algebra.retention import Retention, retained
from lora_registry.algebra.slices import refilled, slices
from lora_registry.algebra.truncation import Truncation
from lora_registry.errors import UsageError
from lora_registry.progress import Counted, Progress


def resize(
    parent: Parent,
    truncation: Truncation,
    *,
    dtype: str = "F32",
    dense: bool = False,
    progress: Progress | None = None,
) -> tuple[Adapter, tuple[Retention, ...]]:
    """The adapter with at most the ranks that ``truncation`` allows.

    A target whose rank is small enough already stays as it is, byte for byte. Targets without a rank do too: bias,
    full, tokens; and so does a value beside factors, which is what the change is made on.

    Args:
        parent: the adapter.
        truncation: a rank or an energy.
        dtype: element type of the factors that change.
        dense: multiply out LoHa, LoKr and sparse changes, instead of leaving them as they are.
        progress: called with the targets that are done, and with all.

    Returns:
        The adapter, and what was kept of each target with factors.

    Raises:
        UsageError: nothing is asked for, or no element type of factors.
        UnsupportedError: a magnitude (DoRA): how a direction is scaled depends on the base.
        InvalidInputError: a factor is not finite.
    """
    if not truncation:
        raise UsageError("a rank or an energy to keep")
    check_dtype(dtype)
    counted = Counted(progress, len(parent.adapter))
    targets, retentions = [], []
    with one_thread():
        for target in parent.adapter:
            refuse_magnitude(target)
            plain = lowered(target) if dense and target.kind in DENSE else target
            if plain.kind in LOW_RANK:
                plain, retention = _resized(plain, truncation, dtype)
                retentions.append(retention)
            targets.append(plain)
            counted.advance(1)
    parameters = {**truncation.to_json(), "dtype": dtype}
    return descendant([parent], targets, "resize", parameters)[0], tuple(retentions)


def _resized(target: Target, truncation: Truncation, dtype: str) -> tuple[Target, Retention]:
    matrices = slices(target)
    kept, whole, left_out = truncated(matrices, truncation)
    assert target.rank is not None
    if kept[0].rank * target.groups >= target.rank:
        return target, Retention(target.name, target.rank, whole)
    made = refilled(target, kept, dtype)
    return made, retained(made, kept, whole, left_out)


def truncated(
    matrices: Sequence[LowRank], truncation: Truncation, *, noise: float = 0.0
) -> tuple[list[LowRank], float, float]:
    """Matrices of one rank that approximate ``matrices`` best: the largest rank that one of them needs.

    Args:
        matrices: the experts or groups of one target, or a single matrix.
        truncation: what may be left out.
        noise: singular values up to this are the rounding of a difference, and become zero.

    Returns:
        The matrices, the norm of what they approximate, and that of what is left out; Frobenius, all taken as one.
    """
    found = [svd(matrix) for matrix in matrices]
    found = [replace(each, values=np.where(each.values > noise, each.values, 0.0)) for each in found]
    rank = max(_kept(each, truncation) for each in found)
    left_out = sqrt(sum(each.error(rank) ** 2 for each in found))
    whole = sqrt(sum(each.error(0) ** 2 for each in found))
    return [each.truncated(rank) for each in found], whole, left_out


def _kept(found: Svd, truncation: Truncation) -> int:
    kept = truncation.keep(found.values, found.error(0) ** 2, found.noise)
    return len(found.values) if kept is None else kept
