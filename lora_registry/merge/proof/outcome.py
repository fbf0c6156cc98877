"""What a merge may give for a tensor, row by row: bounds between which every sound arithmetic ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lora_registry.adapter import Target
from lora_registry.merge.proof.formula import (
    change,
    factors_of,
    matrix_shape,
    outputs_are_rows,
    replaced,
    replaces,
    terms,
)
from lora_registry.merge.proof.interval import Interval
from lora_registry.merge.proof.matrix import Matrix
from lora_registry.merge.proof.nearest import nearest
from lora_registry.merge.proof.roundings import ONCE, Roundings
from lora_registry.ops.arrays import Array, to_array

_BLOCK = 1 << 14
"""Elements that are held at a time where a norm needs the whole tensor."""


class Outcome:
    """What one order of roundings may give for a tensor, for any of its rows.

    Bounds are those of sums of products (Higham 2002, section 3.1) in binary32, or binary64 for an F64 base: an
    element of k products is off by at most k + 3 units of the sum of their sizes, whatever the order.

    Args:
        targets: what changes the tensor; none where nothing does. Several add up.
        base: W as a matrix of any float type (:func:`~lora_registry.merge.proof.formula.matrix_shape`).
        dtype: element type of W'.
        steps: what is rounded on the way.
        times: how often the change is made, each time on the rounded result.
    """

    def __init__(
        self, targets: Sequence[Target], base: Matrix, dtype: str, steps: Roundings = ONCE, *, times: int = 1
    ) -> None:
        self._targets = targets
        self._base = base
        self._dtype = dtype
        self._steps = steps
        self._times = times
        self._unit = 2.0**-53 if base.dtype == np.float64 else 2.0**-24
        self._factors = [self._prepared(target) for target in targets]
        self._column_factor: Interval | None = None

    def _prepared(self, target: Target) -> dict[str, Array]:
        if replaces(target):
            return {}
        dtype = self._steps.factors
        return {role: array if dtype is None else nearest(array, dtype) for role, array in factors_of(target).items()}

    def exact(self, rows: Array) -> Array:
        """W' of these rows with nothing rounded, as good as float64 knows it; float64 (n, columns)."""
        total = self._stored(rows)
        for target, factors in zip(self._targets, self._factors, strict=True):
            if not replaces(target):
                more = change(target, factors, rows)
                more *= target.scale
                total += more
        for target in self._targets:
            if replaces(target):
                total = replaced(target, rows, total).astype(np.float64)
            elif "magnitude" in target.tensors:
                total = self._normalized(target, rows, Interval(total, total)).center
        return total

    def bounds(self, rows: Array) -> Interval:
        """Between which W' of these rows lies before it is rounded."""
        return self._sum(rows, self._weight(rows))

    def interval(self, rows: Array) -> Interval:
        """Between which elements W' of these rows lies."""
        weight = self._weight(rows)
        for _ in range(self._times):
            weight = self._sum(rows, weight).rounded(self._dtype)
        return weight if self._times else weight.rounded(self._dtype)

    def _stored(self, rows: Array) -> Array:
        """W of these rows, or the value that stands in for it, in float64."""
        source: Matrix = self._base
        for target in self._targets:
            if "value" in target.tensors and not replaces(target):
                value = to_array(target.tensors["value"])
                source = value.reshape(matrix_shape(target.kind, value.shape))
        first, last = int(rows[0]), int(rows[-1])
        run = slice(first, last + 1) if last - first + 1 == len(rows) else rows  # without a copy where it is one run
        stored: Array = source[run].astype(np.float64)
        return stored

    def _weight(self, rows: Array) -> Interval:
        stored = self._stored(rows)
        return Interval(stored, stored).rounded(self._steps.base)

    def _sum(self, rows: Array, weight: Interval) -> Interval:
        total = self._added(rows, weight)
        for target in self._targets:
            if replaces(target):
                total = Interval.around(replaced(target, rows, total.center).astype(np.float64), 0.0)
            elif "magnitude" in target.tensors:
                total = self._normalized(target, rows, total)
        return total

    def _added(self, rows: Array, weight: Interval) -> Interval:
        total = weight
        for target, factors in zip(self._targets, self._factors, strict=True):
            if not replaces(target):
                total = total.plus(self._change(target, factors, rows), self._unit)
        return total.rounded(self._steps.sum)

    def _change(self, target: Target, factors: dict[str, Array], rows: Array) -> Interval:
        steps, unit = self._steps, self._unit
        scale = target.scale
        if steps.early and steps.product is not None:
            first = next((role for role in ("B", "B1", "C1", "delta") if role in factors), None)
            if first is not None:
                factors = {**factors, first: nearest(factors[first] * scale, steps.product)}
                scale = 1.0
        product = change(target, factors, rows)
        sizes = change(target, {role: np.abs(array) for role, array in factors.items()}, rows)
        result = Interval.around(product, (terms(target) + 3) * unit * sizes)
        if not steps.early:
            result = result.rounded(steps.product)
        return result.times(scale).rounded(steps.change)

    def _normalized(self, target: Target, rows: Array, total: Interval) -> Interval:
        """Return m ∘ V / ‖V‖, with the norm of each output over all other axes."""
        magnitude = to_array(target.tensors["magnitude"]).astype(np.float64)
        if self._steps.factors is not None:
            magnitude = nearest(magnitude, self._steps.factors)
        if outputs_are_rows(target):
            factor = self._factor(magnitude[rows][:, None], *_squares(total, axis=1), total.low.shape[1])
        else:
            if self._column_factor is None:
                self._column_factor = self._of_columns(magnitude)
            factor = self._column_factor
        center, size = total.center * factor.center, np.abs(total.center)
        return Interval.around(center, total.radius * np.abs(factor.center) + (size + total.radius) * factor.radius)

    def _of_columns(self, magnitude: Array) -> Interval:
        squares, radii = np.zeros((1, self._base.shape[1])), np.zeros((1, self._base.shape[1]))
        step = max(1, _BLOCK // self._base.shape[1])
        for start in range(0, len(self._base), step):
            rows = np.arange(start, min(start + step, len(self._base)))
            more = _squares(self._added(rows, self._weight(rows)), axis=0)
            squares, radii = squares + more[0], radii + more[1]
        return self._factor(magnitude[None, :], squares, radii, len(self._base))

    def _factor(self, magnitude: Array, squares: Array, radii: Array, count: int) -> Interval:
        """Return m / ‖V‖; a float32 norm of ``count`` elements is taken to be off by 8 + √count units at most."""
        with np.errstate(divide="ignore", invalid="ignore"):
            length = np.sqrt(squares)
            off = np.sqrt(radii) + length * (8 + np.sqrt(count)) * self._unit
            norm = Interval.around(length, off).rounded(self._steps.sum)
            first, second = magnitude / norm.low, magnitude / norm.high
        return Interval(np.minimum(first, second), np.maximum(first, second)).rounded(self._steps.sum)


def _squares(values: Interval, axis: int) -> tuple[Array, Array]:
    """Sums of the squares of the centers and of the radii along an axis, which stays with length 1."""
    return (np.square(values.center).sum(axis, keepdims=True), np.square(values.radius).sum(axis, keepdims=True))
