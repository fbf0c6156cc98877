"""Sparse changes, rows behind those of the base, and what no merge can hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array, from_array
from lora_registry.ops.change import RowMerger, delta, merged
from lora_registry.ops.mergeable import check_applicable, check_mergeable

random = np.random.default_rng(1)


def floats(*shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def sparse(shape: tuple[int, ...], positions: list[int]) -> tuple[Target, Array]:
    """A sparse target, and its change as it stands in the tensor."""
    values = floats(len(positions))
    tensors = {"index": from_array(np.array(positions, np.int64)), "delta": from_array(values)}
    change = np.zeros(shape)
    for position, value in zip(positions, values, strict=True):
        change[np.unravel_index(position, shape)] += -1.5 * value
    return Target(name="w", kind=Kind.SPARSE, layout=(), shape=shape, scale=-1.5, tensors=tensors), change


@pytest.mark.parametrize("shape", [(), (12,), (3, 4), (2, 3, 2), (2, 1, 3, 2)])
def test_sparse_changes_add_to_single_elements(shape: tuple[int, ...]) -> None:
    """Positions count in row-major order of the stored tensor, in one block or many."""
    size = int(np.prod(shape))
    target, change = sparse(shape, sorted({0, size // 2, size - 1}))
    base = floats(*shape)
    np.testing.assert_allclose(merged(target, base), base + change, rtol=1e-6)
    np.testing.assert_allclose(delta(target), change, rtol=1e-6)
    merger, flat = RowMerger(target, shape), np.asarray(base).reshape(-1)
    blocks = [merger.merge(start, stop, flat[start:stop]) for start, stop in merger.blocks(elements=1)]
    assert np.array_equal(np.concatenate(blocks).reshape(shape), merged(target, base))
    transposed = np.array(base, order="F")  # a view in another order of memory is still the same tensor
    np.testing.assert_allclose(merged(target, transposed), base + change, rtol=1e-6)


@pytest.mark.parametrize("positions", [[3, 1], [1, 1], [-1, 2], [4, 12]])
def test_broken_positions_change_nothing(positions: list[int]) -> None:
    """A file that was opened and not validated may hold them: the merge refuses, and writes no wrong element."""
    target, _ = sparse((3, 4), [1, 2])
    broken = replace(target, tensors={**target.tensors, "index": from_array(np.array(positions, np.int64))})
    for attempt in (lambda: merged(broken, floats(3, 4)), lambda: delta(broken), lambda: RowMerger(broken, (3, 4))):
        with pytest.raises(InvalidInputError, match="not ascending and within"):
            attempt()


def grown(rows: tuple[int, ...] = (1, 4, 5)) -> tuple[Target, Array]:
    """A table of 4 rows of which some are replaced, and which becomes 6."""
    value = floats(len(rows), 3)
    target = Target(
        name="embed.weight",
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=(4, 3),
        rows=rows,
        length=6,
        tensors={"value": from_array(value)},
    )
    return target, value


def test_rows_behind_the_base_make_the_table_longer() -> None:
    """Rows of the base are replaced, those behind it added, and the others are as they were."""
    target, value = grown()
    base = floats(4, 3)
    expected = np.concatenate((base, np.zeros((2, 3), np.float32)))
    expected[[1, 4, 5]] = value
    assert np.array_equal(merged(target, base), expected)
    assert merged(target, base.astype(np.float64)).dtype == np.float64
    only, new = grown((4, 5))
    assert np.array_equal(merged(only, base), np.concatenate((base, new)))
    with pytest.raises(InvalidInputError, match=r"has shape \[5, 3\]"):
        merged(target, floats(5, 3))


def test_new_rows_are_finite() -> None:
    """Nothing in the base excuses an infinite new row."""
    target, value = grown()
    value[2, 0] = np.inf
    broken = replace(target, tensors={"value": from_array(value)})
    with pytest.raises(InvalidInputError, match="not finite"):
        merged(broken, floats(4, 3))


def test_what_has_no_place_in_the_base_is_refused() -> None:
    """Growth by its number of rows, a gate by its tokens."""
    target, _ = grown()
    for check in (check_mergeable, lambda adapter: check_applicable(adapter, "why")):
        with pytest.raises(UnsupportedError, match=r"embed\.weight: adds 2 rows to the 4 of the base"):
            check(Adapter(targets=(target,)))
    with pytest.raises(UnsupportedError, match="adds 2 rows"):
        RowMerger(target, (4, 3))
    gated = Adapter(targets=(sparse((3, 4), [1])[0],), gate=(7, 8))
    with pytest.raises(UnsupportedError, match=r"tokens \[7, 8\] \(activated LoRA\): merged weights .* unmerged"):
        check_mergeable(gated)
    check_mergeable(replace(gated, gate=()))
