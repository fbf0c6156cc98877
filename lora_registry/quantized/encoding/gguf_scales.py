"""How llama.cpp finds the scales of groups of k-quants: several are tried, and the one that comes closest is taken.

Groups lie side by side, (elements, groups), so that sums along the first axis add one element after the other: the same
roundings in float32 as the loops of ``ggml-quants.c``, on every machine. The names in parentheses are that file's.
"""

from __future__ import annotations

import numpy as np

from lora_registry.ops.arrays import Array

_TINY = np.float32(1e-15)  # GROUP_MAX_EPS
_STEP = np.float32(0.1)


def affine(
    groups: Array, weights: Array, highest: int, first: float, steps: int, *, absolute: bool
) -> tuple[Array, Array, Array]:
    """Scales and minima with codes from 0 (``make_qkx2_quants``).

    Args:
        groups: float32 (elements, groups).
        weights: how much each element counts; likewise.
        highest: the largest code.
        first: what is added to it at first; it grows by 0.1.
        steps: how often it grows.
        absolute: the differences count, and not their squares.

    Returns:
        Scales and what is taken off, (groups,), none of them negative; codes, uint8 as ``groups``.
    """
    low, high = np.minimum(groups.min(axis=0), np.float32(0)), groups.max(axis=0)
    flat = high == low
    total, weighted = _sum(weights), _sum(weights * groups)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        factor = np.float32(highest) / (high - low)
        scale = np.float32(1) / factor
        codes = np.clip(np.rint(factor * (groups - low)), 0, highest)
        best = _miss(scale * codes + low - groups, weights, absolute=absolute)
        for step in range(steps + 1):
            wider = np.float32(first) + _STEP * np.float32(step) + np.float32(highest)
            tried = np.clip(np.rint(wider / (high - low) * (groups - low)), 0, highest)
            share = weights * tried
            ones, squares, products = _sum(share), _sum(share * tried), _sum(share * groups)
            determinant = total * squares - ones * ones
            new_scale = (total * products - weighted * ones) / determinant
            new_low = (squares * weighted - ones * products) / determinant
            new_scale = np.where(new_low > 0, products / squares, new_scale)
            new_low = np.minimum(new_low, np.float32(0))
            miss = _miss(new_scale * tried + new_low - groups, weights, absolute=absolute)
            better = (determinant > 0) & (miss < best)
            codes = np.where(better, tried, codes)
            best, scale, low = (
                np.where(better, new, old) for new, old in ((miss, best), (new_scale, scale), (new_low, low))
            )
    scale = np.where(flat, np.float32(0), scale)
    return scale, -low, np.where(flat, np.float32(0), codes).astype(np.uint8)


def symmetric(groups: Array, half: int) -> tuple[Array, Array]:
    """Scales with codes on both sides of 0 (``make_qx_quants`` with squares of the elements as weights).

    Args:
        groups: float32 (elements, groups).
        half: codes are from -half to half - 1.

    Returns:
        Scales, (groups,), of either sign; codes plus ``half``, uint8 as ``groups``.
    """
    outermost, empty = _outermost(groups)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes, products, squares = _fitted(groups, np.float32(-half) / outermost, half)
        scale = np.where(squares != 0, products / squares, np.float32(0))
        best = scale * products
        for step in (*range(-9, 0), *range(1, 10)):
            factor = -(np.float32(half) + _STEP * np.float32(step)) / outermost
            tried, new_products, new_squares = _fitted(groups, factor, half)
            better = (new_squares > 0) & (new_products * new_products > best * new_squares)
            codes = np.where(better, tried, codes)
            scale = np.where(better, new_products / new_squares, scale)
            best = np.where(better, scale * new_products, best)
    return np.where(empty, np.float32(0), scale), np.where(empty, np.float32(0), codes + half).astype(np.uint8)


def symmetric_by_element(groups: Array, half: int) -> tuple[Array, Array]:
    """The same, going over the elements five times and moving one code at a time (``make_q3_quants``)."""
    outermost, empty = _outermost(groups)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        codes, products, squares = _fitted(groups, np.float32(-half) / outermost, half)
        for _ in range(5):
            for values, row in zip(groups, codes, strict=True):
                weight = values * values
                other_products = products - weight * values * row
                other_squares = squares - weight * row * row
                tried = np.clip(np.rint(values * other_squares / other_products), -half, half - 1)
                new_products = other_products + weight * values * tried
                new_squares = other_squares + weight * tried * tried
                better = (other_products > 0) & (tried != row) & (new_squares > 0)
                better &= new_products * new_products * squares > products * products * new_squares
                row[better] = tried[better]
                products, squares = np.where(better, new_products, products), np.where(better, new_squares, squares)
        scale = np.where(squares > 0, products / squares, np.float32(0))
    return np.where(empty, np.float32(0), scale), np.where(empty, np.float32(0), codes + half).astype(np.uint8)


def _sum(numbers: Array) -> Array:
    result: Array = np.add.reduce(numbers, axis=0)
    return result


def _miss(differences: Array, weights: Array, *, absolute: bool) -> Array:
    return _sum(weights * (np.abs(differences) if absolute else differences * differences))


def _outermost(groups: Array) -> tuple[Array, Array]:
    """Of each group, the element farthest from 0, and whether all are 0."""
    where = np.abs(groups).argmax(axis=0)[np.newaxis]
    outermost = np.take_along_axis(groups, where, axis=0)[0]
    return outermost, np.abs(outermost) < _TINY


def _fitted(groups: Array, factor: Array, half: int) -> tuple[Array, Array, Array]:
    """Codes with a factor, and what a scale follows from: sums of w·x·code and w·code·code, with w = x·x."""
    codes = np.clip(np.rint(factor * groups), -half, half - 1)
    weights = groups * groups
    return codes, _sum(weights * groups * codes), _sum(weights * codes * codes)
