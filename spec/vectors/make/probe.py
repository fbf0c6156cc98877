"""The probe certificate, exactly (section 11.1)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from fractions import Fraction
from math import isfinite
from typing import Any

import identity
from change import CHANGES, Matrix, Numbers, change
from container import Tensor
from draft import Draft
from vector import refused

COUNT = 8
TOLERANCE = Fraction(1, 2**30)


def signs(side: str, number: int, count: int) -> list[int]:
    """The first signs of the stream of one side."""
    stream = b""
    block = 0
    while len(stream) * 8 < count:
        stream += hashlib.sha256(f"loreg-probe-v1/{side}/{number}/{block}".encode("ascii")).digest()
        block += 1
    return [-1 if stream[index // 8] >> index % 8 & 1 else 1 for index in range(count)]


def components(draft: Draft, name: str, *, absolute: bool = False) -> Iterator[tuple[str, Matrix]]:
    """The matrices of a target, by component."""
    target, tensors = draft.target(name), draft.roles(name)
    if target["kind"] in CHANGES:
        yield "change", change(target, tensors, absolute=absolute)
    if "magnitude" in tensors:
        yield "magnitude", Numbers.of(tensors["magnitude"], absolute=absolute).matrix()
    if "value" in tensors:
        yield "value", _logical(target, tensors["value"], absolute=absolute).matrix()


def _logical(target: dict[str, Any], item: Tensor, *, absolute: bool) -> Numbers:
    """A value in the axis order of its fingerprint."""
    numbers = Numbers.of(item, absolute=absolute)
    if target["kind"] in identity.TWO_ORDERS and target["layout"][-2:] == ["in", "out"]:
        *stack, rows, columns = item.shape
        return Numbers((*stack, columns, rows), identity.transposed(numbers.values, rows, columns))
    return numbers


def numbers_of(matrix: Matrix) -> list[Fraction]:
    """The eight numbers of a matrix."""
    rows, columns = len(matrix), len(matrix[0])
    result = []
    for number in range(COUNT):
        left, right = signs("left", number, rows), signs("right", number, columns)
        result.append(
            sum(
                (u * v * x for u, row in zip(left, matrix, strict=True) for v, x in zip(right, row, strict=True)),
                Fraction(),
            )
        )  # fmt: skip
    return result


def expectation(draft: Draft) -> dict[str, Any]:
    """What is expected of a prover: a certificate, or the refusal of numbers that binary64 does not hold."""
    if not all(isfinite(value) for item in draft.tensors.values() for value in item.values):
        return refused("invalid-input")
    try:
        return certificate(draft)
    except OverflowError:
        return refused("invalid-input")


def certificate(draft: Draft) -> dict[str, Any]:
    """The exact numbers as the nearest binary64, and what P-051 allows around them.

    Raises:
        OverflowError: one of them is beyond binary64.
    """
    names = draft.document["targets"]
    return {
        "targets": {
            name: {component: [float(p) for p in numbers_of(matrix)] for component, matrix in components(draft, name)}
            for name in names
        },
        "bounds": {
            name: {
                component: float(sum(map(sum, matrix), Fraction()) * TOLERANCE)
                for component, matrix in components(draft, name, absolute=True)
            }
            for name in names
        },
    }
