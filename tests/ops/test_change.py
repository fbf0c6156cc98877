"""The arithmetic against formulas written out in float64."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.adapter import Kind, Target
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import from_array, to_array
from lora_registry.ops.change import RowMerger, delta, merged

random = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return random.normal(size=shape).astype(np.float32)


def target(kind: Kind, layout: tuple[str, ...], shape: tuple[int, ...], **tensors: np.ndarray) -> Target:
    packed = {role: from_array(array) for role, array in tensors.items()}
    return Target(name="w", kind=kind, layout=layout, shape=shape, scale=0.37, tensors=packed)


def low_rank(kind: Kind, layout: tuple[str, ...], shape: tuple[int, ...], *, dora: bool = False) -> Target:
    """A target of rank 3 with random factors."""
    out, inner = shape[layout.index("out")], shape[layout.index("in")]
    kernel = shape[2:] if kind is Kind.CONV else ()
    stack = shape[:1] if kind is Kind.EXPERTS else ()
    tensors = {"A": floats(*stack, 3, inner, *kernel), "B": floats(*stack, out, 3, *(1 for _ in kernel))}
    return target(kind, layout, shape, **tensors, **({"magnitude": floats(out)} if dora else {}))


def reference(change: Target, base: np.ndarray) -> np.ndarray:
    """W' by the formulas of adapter.py, in float64, axis by axis."""
    a, b = (to_array(change.tensors[role]).astype(np.float64) for role in "AB")
    expert = "e" if change.kind is Kind.EXPERTS else ""
    kernel = "xyz"[: a.ndim - 2] if change.kind is Kind.CONV else ""
    if kernel:
        b = b.reshape(b.shape[:2])
    axes = expert + "".join({"out": "o", "in": "i"}.get(axis, "") for axis in change.layout) + kernel
    total = base + change.scale * np.einsum(f"{expert}or,{expert}ri{kernel}->{axes}", b, a)
    if "magnitude" in change.tensors:
        others = tuple(position for position, axis in enumerate(axes) if axis != "o")
        shape = [-1 if axis == "o" else 1 for axis in axes]
        norm = np.sqrt((total**2).sum(axis=others, keepdims=True))
        total = to_array(change.tensors["magnitude"]).reshape(shape) * total / norm
    return total


CASES = [
    (Kind.LINEAR, ("out", "in"), (11, 7)),
    (Kind.LINEAR, ("in", "out"), (7, 11)),
    (Kind.EMBEDDING, ("in", "out"), (13, 5)),
    (Kind.CONV, ("out", "in", "k"), (6, 4, 3)),
    (Kind.CONV, ("out", "in", "k", "k"), (6, 4, 3, 2)),
    (Kind.CONV, ("out", "in", "k", "k", "k"), (6, 4, 2, 1, 3)),
    (Kind.EXPERTS, ("expert", "out", "in"), (3, 5, 4)),
    (Kind.EXPERTS, ("expert", "in", "out"), (3, 4, 5)),
]


@pytest.mark.parametrize(("kind", "layout", "shape"), CASES)
@pytest.mark.parametrize("dora", [False, True])
def test_every_kind_in_every_layout(kind: Kind, layout: tuple[str, ...], shape: tuple[int, ...], dora: bool) -> None:
    """One block or many small ones, the result is the formula's."""
    if dora and kind is Kind.EXPERTS:
        dora = False  # experts have no magnitude
    change, base = low_rank(kind, layout, shape, dora=dora), floats(*shape)
    expected = reference(change, base)
    whole = merged(change, base)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(whole, expected, rtol=1e-5, atol=1e-5)
    merger, flat = RowMerger(change, shape), base.reshape(-1)
    if merger.needs_norms:
        merger.measure_norms(lambda start, stop: flat[start:stop])
    blocks = [merger.merge(start, stop, flat[start:stop]) for start, stop in merger.blocks(elements=9)]
    assert len(blocks) > 1
    np.testing.assert_allclose(np.concatenate(blocks).reshape(shape), expected, rtol=1e-5, atol=1e-5)
    if not dora:
        np.testing.assert_allclose(delta(change), expected - base, rtol=1e-4, atol=1e-5)


def test_float64_bases_are_merged_in_float64() -> None:
    """An F64 checkpoint keeps its precision."""
    change, base = low_rank(Kind.LINEAR, ("out", "in"), (11, 7)), random.normal(size=(11, 7))
    result = merged(change, base)
    assert result.dtype == np.float64
    np.testing.assert_allclose(result, reference(change, base), rtol=1e-14, atol=1e-14)


def test_half_precision_factors_widen_before_they_are_multiplied() -> None:
    """bfloat16 factors give what their exact values give."""
    change = low_rank(Kind.LINEAR, ("out", "in"), (11, 7))
    halves = {role: to_array(tensor).astype(ml_dtypes.bfloat16) for role, tensor in change.tensors.items()}
    half = replace(change, tensors={role: from_array(array) for role, array in halves.items()})
    np.testing.assert_allclose(merged(half, np.zeros((11, 7), np.float32)), reference(half, 0.0), rtol=1e-5, atol=1e-6)


def test_a_value_stands_in_for_the_base() -> None:
    """Low-rank targets with a value of their own change that, and need no base."""
    value = floats(11, 7)
    change = low_rank(Kind.LINEAR, ("out", "in"), (11, 7))
    change = replace(change, tensors={**change.tensors, "value": from_array(value)})
    expected = reference(change, value)
    np.testing.assert_allclose(merged(change, None), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(merged(change, floats(11, 7)), expected, rtol=1e-5, atol=1e-5)


def test_bias_full_and_tokens() -> None:
    """A bias is added to by the scaled delta, a full target replaces all, a tokens target its rows."""
    base = floats(9)
    bias = target(Kind.BIAS, ("out",), (9,), delta=floats(9))
    np.testing.assert_allclose(merged(bias, base), base + 0.37 * to_array(bias.tensors["delta"]), rtol=1e-6)
    full = target(Kind.FULL, (), (2, 3), value=floats(2, 3))
    assert np.array_equal(merged(full, None), to_array(full.tensors["value"]))
    table = floats(6, 4)
    tokens = replace(target(Kind.TOKENS, ("in", "out"), (6, 4), value=floats(2, 4)), rows=(1, 5), shape=None)
    expected = table.copy()
    expected[[1, 5]] = to_array(tokens.tensors["value"])
    assert np.array_equal(merged(tokens, table), expected)
    merger = RowMerger(tokens, (6, 4))
    blocks = [merger.merge(start, stop, table.reshape(-1)[start:stop]) for start, stop in merger.blocks(elements=8)]
    assert np.array_equal(np.concatenate(blocks).reshape(6, 4), expected)


def test_what_cannot_be_merged_is_refused_by_name() -> None:
    """A grouped conv has no change of the base kernel; a wrong shape, a missing base, a row too far are errors."""
    grouped = replace(target(Kind.CONV, ("out", "in", "k"), (6, 2, 3), A=floats(4, 4, 3), B=floats(6, 2, 1)), groups=2)
    with pytest.raises(UnsupportedError, match="grouped conv"):
        merged(grouped, floats(6, 2, 3))
    change = low_rank(Kind.LINEAR, ("out", "in"), (11, 7))
    with pytest.raises(InvalidInputError, match=r"has shape \[7, 11\]"):
        merged(change, floats(7, 11))
    with pytest.raises(InvalidInputError, match="there is none"):
        merged(change, None)
    tokens = replace(target(Kind.TOKENS, ("in", "out"), (6, 4), value=floats(1, 4)), rows=(6,), shape=None)
    with pytest.raises(InvalidInputError, match="beyond the 6 rows"):
        merged(tokens, floats(6, 4))
    with pytest.raises(UnsupportedError, match="replaces values"):
        delta(tokens)


def test_new_infinities_are_refused_and_old_ones_kept() -> None:
    """A base may hold -inf on purpose; a change may not make one."""
    change = low_rank(Kind.LINEAR, ("out", "in"), (11, 7))
    base = floats(11, 7)
    base[2, 3] = -np.inf
    assert merged(change, base)[2, 3] == -np.inf
    with pytest.raises(InvalidInputError, match="not finite"):
        merged(replace(change, scale=1e300), floats(11, 7))


def test_large_weights_are_not_mistaken_for_infinite_ones() -> None:
    """Squares overflow long before the weights do."""
    base = np.full((11, 7), 1e30, np.float32)
    assert np.isfinite(merged(low_rank(Kind.LINEAR, ("out", "in"), (11, 7)), base)).all()


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(1, 9), columns=st.integers(1, 9), elements=st.integers(1, 99))
def test_blocks_cover_every_element_once(rows: int, columns: int, elements: int) -> None:
    """Whole rows, in order, without gap."""
    ranges = list(RowMerger(low_rank(Kind.LINEAR, ("out", "in"), (rows, columns)), (rows, columns)).blocks(elements))
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == rows * columns
    assert all(start % columns == 0 for start, _ in ranges)


def test_rows_need_a_table() -> None:
    """The value of a tokens target is some rows of W' and never stands for W itself."""
    rows = replace(target(Kind.TOKENS, ("in", "out"), (2, 3), value=floats(2, 3)), shape=None, rows=(0, 1))
    with pytest.raises(InvalidInputError, match="there is none"):
        merged(rows, None)
