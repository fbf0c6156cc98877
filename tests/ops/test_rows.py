"""Rows of fused tensors: what is moved changes the moved tensor as what was there changed the one there was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.adapter import Adapter, Kind, Layout, Target
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.writer import encode_adapter
from lora_registry.ops.arrays import Array, from_array, to_array
from lora_registry.ops.change import delta, merged
from lora_registry.ops.rows import fused, reordered, row_order, split
from lora_registry.segments import Rope, RopeOrder, Segment, Segments

IN = 5
random = np.random.default_rng(2)

FORMS: list[tuple[Kind, Layout, bool]] = [
    (Kind.LINEAR, ("out", "in"), False),
    (Kind.LINEAR, ("out", "in"), True),
    (Kind.LINEAR, ("in", "out"), True),
    (Kind.EXPERTS, ("expert", "out", "in"), False),
    (Kind.EXPERTS, ("expert", "in", "out"), False),
    (Kind.BIAS, ("out",), False),
    (Kind.LOHA, ("out", "in"), True),
    (Kind.LOHA, ("out", "in", "k"), False),
]
"""Kind, layout, and whether there are a magnitude and a value."""


def floats(*shape: int) -> Array:
    return random.normal(size=shape).astype(np.float32)


def made(kind: Kind, layout: Layout, out: int, *, beside: bool = False, rank: int = 2) -> Target:
    """A target of ``out`` outputs with random tensors."""
    lengths = {"expert": 3, "out": out, "in": IN, "k": 2}
    shape = tuple(lengths[axis] for axis in layout)
    kernel = (2,) if "k" in layout else ()
    stack = (3,) if kind is Kind.EXPERTS else ()
    if kind is Kind.BIAS:
        tensors = {"delta": floats(out)}
    else:
        numbers = "12" if kind is Kind.LOHA else ("",)
        tensors = {f"A{number}": floats(*stack, rank, IN, *kernel) for number in numbers}
        tensors |= {f"B{number}": floats(*stack, out, rank) for number in numbers}
    if beside:
        tensors |= {"magnitude": floats(out), "value": floats(*shape)}
    packed = {role: from_array(array) for role, array in tensors.items()}
    return Target(name="w", kind=kind, layout=layout, shape=shape, scale=0.5, tensors=packed)


def moved(target: Target, base: Array, order: list[int]) -> Array:
    """``base`` with its outputs in another order."""
    return np.take(base, order, target.layout.index("out"))


def attention(
    order: RopeOrder = "halves", *, names: str = "qkv", interleave: int = 1, head: int = 4, rotary: int = 4
) -> Segments:
    """Queries of two heads, keys and values of one each, twice: 8 + 4 + 4 outputs a group."""
    lengths = {"q": 16, "k": 8, "v": 8}
    rope = Rope(head, order, rotary)
    parts = (Segment(name, lengths[name], None if name == "v" else rope) for name in names)
    return Segments(tuple(parts), interleave)


ORDERS = st.builds(
    attention,
    st.sampled_from(["halves", "pairs"]),
    names=st.sampled_from(["qkv", "kqv", "vkq", "vqk"]),
    interleave=st.sampled_from([1, 2, 4, 8]),
    rotary=st.just(2),
)


@pytest.mark.parametrize(("kind", "layout", "beside"), FORMS)
@settings(deadline=None, max_examples=20)
@given(have=ORDERS, wanted=ORDERS)
def test_moving_a_target_is_moving_its_tensor(
    kind: Kind, layout: Layout, beside: bool, have: Segments, wanted: Segments
) -> None:
    """Merged into the moved base it is the moved merge; it comes back byte for byte, and can be written (P-044)."""
    target = replace(made(kind, layout, 32, beside=beside), segments=have)
    assert target.shape is not None
    base = floats(*target.shape)
    there, order = reordered(target, wanted), row_order(have, wanted)
    np.testing.assert_allclose(
        merged(there, moved(target, base, order)), moved(target, merged(target, base), order), rtol=1e-6, atol=1e-6
    )
    assert there.segments == wanted
    back = reordered(there, have)
    assert {role: tensor.digest() for role, tensor in back.tensors.items()} == {
        role: tensor.digest() for role, tensor in target.tensors.items()
    }
    encode_adapter(Adapter(targets=(there,)))


@pytest.mark.parametrize(("kind", "layout", "beside"), FORMS)
@settings(deadline=None, max_examples=10)
@given(segments=ORDERS)
def test_parts_that_are_taken_out_fuse_to_the_same(
    kind: Kind, layout: Layout, beside: bool, segments: Segments
) -> None:
    """One A comes back as one A: the very same tensors."""
    whole = replace(made(kind, layout, 32, beside=beside), segments=segments)
    parts = split(whole)
    assert list(parts) == [part.name for part in segments.parts]
    again = fused(parts, segments, name="w")
    assert {role: tensor.digest() for role, tensor in again.tensors.items()} == {
        role: tensor.digest() for role, tensor in whole.tensors.items()
    }
    assert (again.shape, again.segments, again.rank) == (whole.shape, segments, whole.rank)


@pytest.mark.parametrize(("kind", "layout", "beside"), FORMS)
@pytest.mark.parametrize("interleave", [1, 4])
def test_a_part_is_the_change_of_its_rows(kind: Kind, layout: Layout, beside: bool, interleave: int) -> None:
    """Merged by itself into the rows of the base, each segment is what the fused merge holds there."""
    segments = attention(interleave=interleave)
    whole = replace(made(kind, layout, 32, beside=beside), segments=segments)
    assert whole.shape is not None
    base = floats(*whole.shape)
    together = merged(whole, base)
    for name, part in split(whole).items():
        rows = segments.rows()[name]
        np.testing.assert_allclose(
            merged(part, moved(whole, base, rows)), moved(whole, together, rows), rtol=1e-5, atol=1e-6
        )
        assert (part.segments is None) == (name == "v")


@pytest.mark.parametrize(("kind", "layout", "beside"), FORMS)
@pytest.mark.parametrize("interleave", [1, 4])
def test_parts_of_their_own_factors_fuse_block_by_block(
    kind: Kind, layout: Layout, beside: bool, interleave: int
) -> None:
    """The ranks add up, and every segment changes as its part says."""
    segments = Segments((Segment("gate", 8), Segment("up", 8)), interleave)
    parts = {name: made(kind, layout, 8, beside=beside, rank=rank) for name, rank in (("gate", 2), ("up", 3))}
    whole = fused(parts, segments, name="gate_up")
    assert whole.name == "gate_up"
    assert whole.shape is not None
    base = floats(*whole.shape)
    together = merged(whole, base)
    for name, part in parts.items():
        rows = segments.rows()[name]
        np.testing.assert_allclose(
            moved(whole, together, rows), merged(part, moved(whole, base, rows)), rtol=1e-5, atol=1e-6
        )
    if kind in (Kind.LINEAR, Kind.EXPERTS):
        assert whole.rank == 5


def test_a_segment_without_a_part_does_not_change() -> None:
    """Adapters on queries and values leave the keys alone; a magnitude cannot."""
    segments = attention()
    parts = {name: made(Kind.LINEAR, ("out", "in"), length) for name, length in (("q", 16), ("v", 8))}
    change = delta(fused(parts, segments, name="qkv"))
    assert not change[segments.rows()["k"]].any()
    np.testing.assert_allclose(change[segments.rows()["v"]], delta(parts["v"]), rtol=1e-6)
    with_magnitude = {"q": made(Kind.LINEAR, ("out", "in"), 16, beside=True)}
    with pytest.raises(UnsupportedError, match="not every segment has a part"):
        fused(with_magnitude, segments, name="qkv")


def test_ranks_that_undo_an_initialization_stay_last() -> None:
    """The fused target says how many of its last ranks they are, and its rule holds."""
    parts = {
        name: replace(made(Kind.LINEAR, ("out", "in"), 8, rank=rank), initial=initial)
        for name, rank, initial in (("gate", 4, 2), ("up", 3, 1))
    }
    whole = fused(parts, Segments((Segment("gate", 8), Segment("up", 8))), name="gate_up")
    assert (whole.rank, whole.initial) == (7, 3)
    a, b = (to_array(whole.tensors[role]) for role in "AB")
    gate, up = ({role: to_array(part.tensors[role]) for role in "AB"} for part in parts.values())
    assert np.array_equal(a, np.concatenate((gate["A"][:2], up["A"][:2], gate["A"][2:], up["A"][2:])))
    np.testing.assert_allclose(b[:8] @ a, gate["B"] @ gate["A"], rtol=1e-6)
    assert np.array_equal(b[8:, 4:], np.concatenate((np.zeros((8, 2)), up["B"][:, 2:]), axis=1))
    encode_adapter(Adapter(targets=(whole,)))


def test_rope_of_llama_is_the_one_of_transformers() -> None:
    """From Meta's pairs to halves is the ``permute`` of transformers' convert_llama_weights_to_hf.py."""
    heads, head = 3, 8
    weight = torch.arange(heads * head * IN).reshape(heads * head, IN)
    theirs = weight.view(heads, head // 2, 2, IN).transpose(1, 2).reshape(heads * head, IN)
    pairs, halves = (Segments((Segment("q", heads * head, Rope(head, order, head)),)) for order in ("pairs", "halves"))
    assert np.array_equal(weight.numpy()[row_order(pairs, halves)], theirs.numpy())
    there, back = row_order(pairs, halves), row_order(halves, pairs)
    assert [there[row] for row in back] == list(range(heads * head))


def test_rows_that_do_not_rotate_stay() -> None:
    """Of a head of 6 of which 4 rotate, the last two are where they were."""
    pairs, halves = (Segments((Segment("q", 12, Rope(6, order, 4)),)) for order in ("pairs", "halves"))
    assert row_order(pairs, halves) == [0, 2, 1, 3, 4, 5, 6, 8, 7, 9, 10, 11]


def test_orders_of_rows_by_hand() -> None:
    """gpt-oss alternates gate and up; Megatron groups queries with their keys and values."""
    whole = Segments((Segment("gate", 3), Segment("up", 3)))
    assert row_order(whole, replace(whole, interleave=3)) == [0, 3, 1, 4, 2, 5]
    qkv = Segments((Segment("q", 4), Segment("k", 2), Segment("v", 2)))
    assert row_order(qkv, replace(qkv, interleave=2)) == [0, 1, 4, 6, 2, 3, 5, 7]


def test_what_stays_in_place_stays_as_it_is() -> None:
    """No new order: the same target, its fingerprint included. A new order: another base, of unknown fingerprint."""
    segments = attention()
    known = replace(made(Kind.LINEAR, ("out", "in"), 32), segments=segments, fingerprint=Digest.of(b"base"))
    assert reordered(known, attention()) is known
    there = reordered(known, attention("pairs"))
    assert there.fingerprint is None
    assert there.tensors["A"] is known.tensors["A"]


def test_what_has_no_meaning_is_refused() -> None:
    """By name: no segments, other segments, another rotation, LoKr, several scales, parts that do not agree (P-043)."""
    plain = made(Kind.LINEAR, ("out", "in"), 32)
    with pytest.raises(InvalidInputError, match="has no segments"):
        split(plain)
    with pytest.raises(InvalidInputError, match="has no segments"):
        reordered(plain, attention())
    whole = replace(plain, segments=attention())
    for wanted, message in (
        (attention(names="qk"), r"q 16 \+ k 8 \+ v 8 cannot be put into the order of q 16 \+ k 8"),
        (attention(head=8), "segment q: Rope"),
        (attention(rotary=2), "segment q: Rope"),
        (Segments((Segment("q", 16), Segment("k", 8), Segment("v", 8))), "segment q: Rope"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            reordered(whole, wanted)
    uneven = attention(interleave=3)
    for attempt in (
        lambda: reordered(whole, uneven),
        lambda: row_order(uneven, attention()),
        lambda: fused({"q": made(Kind.LINEAR, ("out", "in"), 16)}, uneven, name="w"),
    ):
        with pytest.raises(InvalidInputError, match="3 blocks do not divide every segment"):
            attempt()
    lokr = replace(
        plain,
        kind=Kind.LOKR,
        segments=attention(),
        tensors={"C1": from_array(floats(4, 1)), "C2": from_array(floats(8, IN))},
    )
    for attempt in (
        lambda: split(lokr),
        lambda: reordered(lokr, attention("pairs")),
        lambda: fused({"q": lokr}, attention(), name="w"),
    ):
        with pytest.raises(UnsupportedError, match="LoKr"):
            attempt()
    q, k = made(Kind.LINEAR, ("out", "in"), 16), made(Kind.LINEAR, ("out", "in"), 8)
    for parts, kind, message in (
        ({"q": q, "x": k}, InvalidInputError, "no segment x"),
        ({}, InvalidInputError, "no segment"),
        ({"q": k}, InvalidInputError, "does not have the 16 of q"),
        ({"q": q, "k": replace(k, scale=2.0)}, UnsupportedError, r"the scales \[0\.5, 2\.0\]"),
        ({"q": q, "k": made(Kind.BIAS, ("out",), 8)}, InvalidInputError, "differ in kind"),
        ({"q": q, "k": made(Kind.LINEAR, ("in", "out"), 8)}, InvalidInputError, "differ in layout"),
        ({"q": q, "k": made(Kind.LINEAR, ("out", "in"), 8, beside=True)}, InvalidInputError, "differ in roles"),
        ({"q": replace(q, kind=Kind.FULL)}, InvalidInputError, "no part of a fused tensor"),
    ):
        with pytest.raises(kind, match=message):
            fused(parts, attention(), name="qkv")
    half = {role: from_array(to_array(tensor).astype(np.float16)) for role, tensor in k.tensors.items()}
    with pytest.raises(InvalidInputError, match="differ in element types"):
        fused({"q": q, "k": replace(k, tensors=half)}, attention(), name="qkv")
