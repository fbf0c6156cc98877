"""The change that a target makes, exactly: matrices of fractions (section 5 and the registered kinds)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import prod
from typing import Any

from container import Tensor

Matrix = list[list[Fraction]]
CHANGES = ("linear", "embedding", "conv", "experts", "bias", "sparse", "loha", "lokr")
"""The kinds that have a change; the others replace."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """The exact numbers of a tensor of finite elements."""

    shape: tuple[int, ...]
    values: list[Fraction]

    @classmethod
    def of(cls, item: Tensor, *, absolute: bool = False) -> Numbers:
        """The numbers of a tensor, or their absolute values."""
        values = [Fraction(value) for value in item.values]
        return cls(item.shape, [abs(value) for value in values] if absolute else values)

    def matrix(self, rows: int | None = None) -> Matrix:
        """The numbers in so many rows; in as many as the first axis is long where nothing is said."""
        count = (self.shape[0] if self.shape else 1) if rows is None else rows
        width = len(self.values) // count
        return [self.values[start : start + width] for start in range(0, len(self.values), width)]


def product(left: Matrix, right: Matrix) -> Matrix:
    """The product of two matrices."""
    columns = list(zip(*right, strict=True))
    return [[sum((x * y for x, y in zip(row, column, strict=True)), Fraction()) for column in columns] for row in left]


def scaled(scale: Fraction, matrix: Matrix) -> Matrix:
    """The matrix, every element multiplied."""
    return [[scale * value for value in row] for row in matrix]


def change(target: Mapping[str, Any], tensors: Mapping[str, Tensor], *, absolute: bool = False) -> Matrix:
    """The change of a target with its scale, as (out, in · k…); of experts over each other; of others as they lie.

    Args:
        target: its record.
        tensors: by role.
        absolute: take the absolute value of the scale and of every element before anything else.
    """
    scale = Fraction(target["scale"])
    numbers = {
        role: Numbers.of(item, absolute=absolute)
        for role, item in tensors.items()
        if role not in ("magnitude", "value")
    }
    return scaled(abs(scale) if absolute else scale, _unscaled(target, numbers))


def _unscaled(target: Mapping[str, Any], numbers: Mapping[str, Numbers]) -> Matrix:
    match target["kind"]:
        case "bias":
            return numbers["delta"].matrix()
        case "sparse":
            return _sparse(target["shape"], numbers)
        case "experts":
            return _experts(numbers)
        case "conv":
            return _conv(target.get("groups", 1), numbers)
        case "loha":
            pairs = zip(_side(numbers, "1"), _side(numbers, "2"), strict=True)
            return [[x * y for x, y in zip(*rows, strict=True)] for rows in pairs]
        case "lokr":
            return _kronecker(numbers)
    return product(numbers["B"].matrix(), numbers["A"].matrix())


def _side(numbers: Mapping[str, Numbers], number: str) -> Matrix:
    """One of the two products of a composed kind, its kernel flattened."""
    return product(numbers[f"B{number}"].matrix(), numbers[f"A{number}"].matrix())


def _sparse(shape: list[int], numbers: Mapping[str, Numbers]) -> Matrix:
    flat = [Fraction()] * prod(shape)
    for position, value in zip(numbers["index"].values, numbers["delta"].values, strict=True):
        flat[int(position)] = value
    return Numbers(tuple(shape), flat).matrix()


def _experts(numbers: Mapping[str, Numbers]) -> Matrix:
    a, b = numbers["A"], numbers["B"]
    count, rank = a.shape[:2]
    left, right = b.matrix(count * b.shape[1]), a.matrix(count * rank)
    rows = b.shape[1]
    return [
        row
        for expert in range(count)
        for row in product(left[expert * rows : (expert + 1) * rows], right[expert * rank : (expert + 1) * rank])
    ]


def _conv(groups: int, numbers: Mapping[str, Numbers]) -> Matrix:
    """The dense change; outputs of a group read the ranks of that group only (section 5.1)."""
    left, right = numbers["B"].matrix(), numbers["A"].matrix()
    ranks, outputs = len(right) // groups, len(left) // groups
    return [
        row
        for group in range(groups)
        for row in product(
            left[group * outputs : (group + 1) * outputs], right[group * ranks : (group + 1) * ranks]
        )
    ]  # fmt: skip


def _kronecker(numbers: Mapping[str, Numbers]) -> Matrix:
    """C1 with C2: output a · o2 + b and input c · i2 + d are C1(a, c) · C2(b, d), at each place of the kernel."""
    first = numbers["C1"].matrix() if "C1" in numbers else _side(numbers, "1")
    second = numbers["C2"].matrix() if "C2" in numbers else _side(numbers, "2")
    return [[x * y for x in above for y in below] for above in first for below in second]


def places(target: Mapping[str, Any]) -> list[list[int]]:
    """Where the elements of the logical matrix lie in the base tensor as stored."""
    shape, kind = target["shape"], target["kind"]
    layout = target.get("layout") or ["out"]
    if layout[-2:] != ["in", "out"]:
        width = shape[2] if kind == "experts" else prod(shape[1:])
        return [list(range(start, start + width)) for start in range(0, prod(shape), width)]
    inner, outer = shape[-2:]
    size = inner * outer
    return [
        [start + column * outer + row for column in range(inner)]
        for start in range(0, prod(shape), size)
        for row in range(outer)
    ]


def stored(target: Mapping[str, Any], matrix: Matrix) -> list[Fraction]:
    """A logical matrix in the order of the base tensor as stored."""
    flat = [Fraction()] * prod(target["shape"])
    for row, cells in zip(matrix, places(target), strict=True):
        for value, cell in zip(row, cells, strict=True):
            flat[cell] = value
    return flat
