"""Combinations element by element: trimming, dropping, and the election of signs (TIES), each convention by its name.

Yadav et al. 2023 (TIES, arXiv 2306.01708) and Yu et al. 2024 (DARE, arXiv 2311.03099) left room, and the programs
filled it in different ways. With x the changes of one element in the adapters, trimmed or dropped, and w the weights:

========== ========================== ================================= ====================================
convention sign of an element         result where x has that sign      trimmed within
========== ========================== ================================= ====================================
peft       of Σ x; + where it is 0    Σ w·x / how many have the sign    one tensor
mergekit   of Σ w·x; + where it is 0  Σ w·x / Σ w of those              one tensor
paper      of Σ x; none where it is 0 λ · Σ x / how many have the sign  the whole adapter
========== ========================== ================================= ====================================

peft is ``ties_svd`` of PEFT 0.21 (utils/merge_utils.py). Its ``ties`` elects signs in A and in B, which are not those
of the change: B·A = (B·Q)(Q⁻¹·A) has other signs in its factors for every Q. It is not offered. mergekit is ``ties``
of 0.1 with its default of ``normalize: true`` (generalized_task_arithmetic.py). The paper has one λ and no weights,
so that all weights have to be equal and are λ. Exactly int(density · n) elements are kept in a tensor, as in PEFT and
mergekit, which keeps one at least; where magnitudes are equal, the first ones, where theirs are any.

DARE is mergekit's ``dare_linear`` with its defaults: ``rescale: true``, which is by the norm l1 of what was drawn, and
``normalize: false``. Not offered are its ``dare_ties``, ``breadcrumbs`` and ``della``, TIES without normalization, and
a rescaled TIES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import numpy as np

from lora_registry.algebra.arithmetic import device
from lora_registry.errors import UsageError
from lora_registry.ops.arrays import Array


class Convention(StrEnum):
    """Whose rules elect the signs; see the table above."""

    PEFT = "peft"
    MERGEKIT = "mergekit"
    PAPER = "paper"


_TINY = 1e-7
"""Sums of magnitudes below which mergekit does not rescale (``rescaled_masked_tensor``, sparsify.py)."""


def trimmed(change: Array, density: float, convention: Convention = Convention.PEFT) -> Array:
    """``change`` with its int(density · size) largest elements by magnitude, and zeros elsewhere.

    Args:
        change: float of any shape.
        density: from 0 to 1.
        convention: mergekit keeps one element at least, unless the density is 0.
    """
    keep = _staying(change.size, density, convention)
    if keep >= change.size:
        return change
    if keep == 0:
        return np.zeros_like(change)
    magnitudes = np.abs(change).reshape(-1)
    last = np.partition(magnitudes, change.size - keep)[change.size - keep]
    kept = magnitudes > last
    equal = np.flatnonzero(magnitudes == last)
    kept[equal[: keep - int(np.count_nonzero(kept))]] = True
    return np.where(kept.reshape(change.shape), change, 0).astype(change.dtype)


def _staying(size: int, density: float, convention: Convention) -> int:
    keep = int(density * size)
    return max(1, keep) if convention is Convention.MERGEKIT and density > 0 else keep


def above(change: Array, threshold: float) -> Array:
    """``change`` with zeros where its magnitude is below ``threshold``."""
    return np.where(np.abs(change) >= threshold, change, 0).astype(change.dtype)


def dropped(change: Array, density: float, random: np.random.Generator, convention: Convention) -> Array:
    """DARE: each element stays with probability ``density``, and those that do make up for the others.

    They are divided by ``density`` (peft, paper), so that the expectation is ``change``, or by the share of Σ|x| that
    stayed (mergekit's ``rescale_norm: l1``), so that the size is; mergekit leaves as it is what is smaller than 1e-7.

    Args:
        change: float32 of any shape.
        density: above 0, at most 1.
        random: draws one float32 for each element, in row-major order.
        convention: whose rules.
    """
    kept = np.where(random.random(change.shape, dtype=np.float32) < density, change, 0).astype(change.dtype)
    if convention is not Convention.MERGEKIT:
        return np.asarray(kept / np.float32(density))
    before, after = (float(np.abs(array).sum(dtype=np.float64)) for array in (change, kept))
    return kept if min(before, after) < _TINY else np.asarray(kept * np.float32(before / after))


def elected(changes: Sequence[Array], weights: Sequence[float], convention: Convention) -> Array:
    """The elements that agree with the elected sign, averaged as ``convention`` has it.

    Args:
        changes: one array for each adapter, all of one shape, trimmed or dropped before.
        weights: one for each.
        convention: whose rules.

    Raises:
        UsageError: unequal weights, which the paper does not have.
    """
    _check_weights(weights, convention)
    by_weight = convention is Convention.MERGEKIT
    weighted = [change * weight for change, weight in zip(changes, weights, strict=True)]
    voters = weighted if by_weight else changes
    total = np.add.reduce(voters)
    sign = np.sign(total)
    if convention is not Convention.PAPER:
        sign[total == 0] = 1
    result, divisor = np.zeros_like(total), np.zeros_like(total)
    for term, voter, weight in zip(weighted, voters, weights, strict=True):
        agrees = voter * sign > 0
        result += term * agrees
        divisor += agrees.astype(total.dtype) * (weight if by_weight else 1)
    divisor[divisor == 0] = 1
    return np.asarray(result / divisor)


def _check_weights(weights: Sequence[float], convention: Convention) -> None:
    if convention is Convention.PAPER and len(set(weights)) > 1:
        raise UsageError("the paper's TIES has one weight for all adapters; peft and mergekit have one for each")


def ties(
    changes: Sequence[Array],
    density: float,
    weights: Sequence[float],
    convention: Convention,
    thresholds: Sequence[float] | None = None,
) -> Array:
    """TIES of one matrix: each change trimmed, then elected; on a device where one computes dense matrices.

    Args:
        changes: one float32 array for each adapter, all of one shape.
        density: the share of each that stays, from 0 to 1.
        weights: one for each.
        convention: whose rules.
        thresholds: for each, the magnitude from which on elements stay, in the place of ``density``.

    Raises:
        UsageError: unequal weights, which the paper does not have.
    """
    elsewhere = device()
    if elsewhere is None:
        if thresholds is None:
            thinned = [trimmed(change, density, convention) for change in changes]
        else:
            thinned = [above(change, least) for change, least in zip(changes, thresholds, strict=True)]
        return elected(thinned, weights, convention)
    _check_weights(weights, convention)
    return elsewhere.ties(
        changes,
        thresholds or [_staying(change.size, density, convention) for change in changes],
        weights,
        by_weight=convention is Convention.MERGEKIT,
        sign_of_zero=0 if convention is Convention.PAPER else 1,
    )


def threshold(changes: Callable[[], Iterator[Array]], density: float) -> float:
    """The magnitude of the int(density · n)-th largest of all elements of several arrays, never held together.

    The bits of a float32 magnitude are ordered as the magnitudes are: two counts of sixteen bits each find the value.

    Args:
        changes: goes over the arrays, float32; called twice.
        density: from 0 to 1.

    Returns:
        Infinity where nothing is to stay, and 0 where everything is.
    """
    high = sum((np.bincount(_bits(array) >> 16, minlength=1 << 16) for array in changes()), np.zeros(1 << 16, int))
    keep = int(density * int(high.sum()))
    if keep == 0:
        return float("inf")
    first, beyond = _place(high, keep)
    low = np.zeros(1 << 16, int)
    for array in changes():
        bits = _bits(array)
        low += np.bincount(bits[bits >> 16 == first] & 0xFFFF, minlength=1 << 16)
    last, _ = _place(low, keep - beyond)
    return float(np.array([first << 16 | last], np.uint32).view(np.float32)[0])


def _bits(array: Array) -> Array:
    return np.abs(np.ascontiguousarray(array, np.float32)).reshape(-1).view(np.uint32)


def _place(counts: Array, keep: int) -> tuple[int, int]:
    """The bin that holds the ``keep``-th element from above, and how many lie in the bins beyond it."""
    beyond = np.cumsum(counts[::-1])
    index = int(np.argmax(beyond >= keep))
    return len(counts) - 1 - index, int(beyond[index] - counts[::-1][index])
