"""P-054 and P-016: which element types a change goes into, and what leaves their range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lora_registry.adapter import Kind, Layout, Target
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import from_array
from lora_registry.ops.change import RowMerger, merged


def target(kind: Kind, layout: Layout, shape: tuple[int, ...], **fields: Any) -> Target:
    tensors = {role: from_array(array) for role, array in fields.pop("tensors").items()}
    return Target(name="w", kind=kind, layout=layout, shape=shape, tensors=tensors, **fields)


def rows_of(value: Any, *, rows: tuple[int, ...] = (1,), length: int | None = None) -> Target:
    return target(Kind.TOKENS, ("in", "out"), (3, 2), rows=rows, length=length, tensors={"value": value})


def test_rows_of_integers_are_replaced_bit_by_bit() -> None:
    """Integers that no float32 holds stay what they are, in the rows that change and in the others."""
    base = np.full((3, 2), 1218252858, dtype=np.int32)
    value = np.array([[1218252859, -1]], dtype=np.int32)
    result = merged(rows_of(value), base)
    assert result.dtype == np.int32
    assert result.tolist() == [[1218252858] * 2, [1218252859, -1], [1218252858] * 2]


@pytest.mark.parametrize("rows", [(3,), (1, 3)])
def test_rows_of_integers_are_added_bit_by_bit(rows: tuple[int, ...]) -> None:
    """A table of integers that grows keeps its type."""
    base = np.full((3, 2), 2**40 + 1, dtype=np.int64)
    value = np.arange(2 * len(rows), dtype=np.int64).reshape(-1, 2)
    result = merged(rows_of(value, rows=rows, length=4), base)
    assert result.dtype == np.int64
    assert result[list(rows)].tolist() == value.tolist()
    assert result[0].tolist() == [2**40 + 1] * 2


@pytest.mark.parametrize(
    ("change", "base"),
    [
        (rows_of(np.ones((1, 2), np.float32)), np.ones((3, 2), np.int32)),
        (rows_of(np.ones((1, 2), np.int32)), np.ones((3, 2), np.float32)),
        (rows_of(np.ones((1, 2), np.int32)), np.ones((3, 2), np.int64)),
        (target(Kind.FULL, (), (2,), tensors={"value": np.ones(2)}), np.ones(2, np.uint8)),
        (target(Kind.BIAS, ("out",), (2,), tensors={"delta": np.ones(2)}), np.ones(2, np.int8)),
    ],
)
def test_types_do_not_mix(change: Target, base: np.ndarray[Any, Any]) -> None:
    """Nothing is truncated or wrapped to fit."""
    with pytest.raises(InvalidInputError, match="does not take"):
        merged(change, base)


@pytest.mark.parametrize("layout", [("out", "in"), ("in", "out")])
def test_a_norm_beyond_float64_is_refused(layout: Layout) -> None:
    """An output whose squares overflow does not become zero in silence."""
    factors = {"A": np.ones((1, 2)), "B": np.ones((2, 1)), "magnitude": np.ones(2)}
    with pytest.raises(InvalidInputError, match="norm"):
        merged(target(Kind.LINEAR, layout, (2, 2), tensors=factors), np.full((2, 2), 1e200))


def test_rows_of_integers_do_not_go_into_blocks_of_floats() -> None:
    """Who merges block by block is refused as well."""
    with pytest.raises(InvalidInputError, match="P-054"):
        RowMerger(rows_of(np.ones((1, 2), np.int32)), (3, 2))
