"""Certificates agree for adapters that make the same change, however they are written down, and for no others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from loreg_converters.peft import converter

from lora_registry.adapter import Adapter, Kind, Layout, Target
from lora_registry.errors import InconclusiveError
from lora_registry.format.identity import content_digest
from lora_registry.ops.agreement import Difference, agree, relative_difference, unseen, with_names_of
from lora_registry.ops.arrays import from_array
from lora_registry.ops.prefix import Prefix
from lora_registry.ops.probe import Certificate, Probe, certify

NAME = "model.layers.0.mlp.gate_up_proj.weight"
A = np.random.default_rng(0).standard_normal((4, 16)).astype(np.float32)
B = np.random.default_rng(1).standard_normal((12, 4)).astype(np.float32)


def linear(a: Any, b: Any, *, scale: float = 2.0, layout: Layout = ("out", "in"), name: str = NAME) -> Adapter:
    shape = (len(b), a.shape[1]) if layout == ("out", "in") else (a.shape[1], len(b))
    tensors = {"A": from_array(np.ascontiguousarray(a)), "B": from_array(np.ascontiguousarray(b))}
    target = Target(name=name, kind=Kind.LINEAR, layout=layout, shape=shape, scale=scale, tensors=tensors)
    return Adapter(targets=(target,))


def experts(a: Any, b: Any) -> Adapter:
    tensors = {"A": from_array(np.ascontiguousarray(a)), "B": from_array(np.ascontiguousarray(b))}
    shape = (len(a), b.shape[1], a.shape[2])
    target = Target(name="w", kind=Kind.EXPERTS, layout=("expert", "out", "in"), shape=shape, tensors=tensors)
    return Adapter(targets=(target,))


def differences(one: Adapter, other: Adapter, tolerance: float = 1e-6) -> list[Difference]:
    return agree(certify(one), certify(other), tolerance)


ORIGINAL = linear(A, B)
ZEROS = np.zeros((3, 16), np.float32)

SAME = {
    "scale in B": linear(A, B * np.float32(2), scale=1.0),
    "scale in A, rounded to float32": linear(A * np.float32(1 / 3), B, scale=6.0),
    "ranks padded in A": linear(np.vstack([A, ZEROS]), np.hstack([B, np.ones((12, 3), np.float32)])),
    "ranks in another order": linear(A[::-1], B[:, ::-1]),
    "stored transposed": linear(A, B, layout=("in", "out")),
    "factors of other shape": linear(B.astype(np.float64) @ A, np.eye(12)),
    "both signs turned": linear(-A, -B),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_change_agrees(name: str) -> None:
    """Other bytes, another content digest, the same certificate."""
    assert content_digest(SAME[name]) != content_digest(ORIGINAL)
    assert differences(ORIGINAL, SAME[name]) == []


def test_a_change_that_cancels_is_none() -> None:
    """What arithmetic leaves of a difference of equal things is no difference, however it compares with zero."""
    wide, a = A.astype(np.float64), B.astype(np.float64)
    cancels = linear(np.vstack([wide, wide / 3]), np.hstack([a, -a * 3]))
    nothing = linear(wide, a * 0)
    assert max(map(abs, certify(cancels).targets[NAME]["change"].numbers)) > 0
    assert differences(cancels, nothing) == []


OTHER = {
    "gate and up swapped": linear(A, np.vstack([B[6:], B[:6]])),
    "the square root of r lost": linear(A, B, scale=2.0 / 2),
    "alpha over r squared": linear(A, B, scale=2.0 / 4),
    "a sign turned": linear(A, -B),
    "two inputs swapped": linear(A[:, [1, 0, *range(2, 16)]], B),
    "B in bfloat16": linear(A, B.astype(ml_dtypes.bfloat16)),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_change_does_not(name: str) -> None:
    """The mistakes that converters make show, far above the tolerance."""
    (difference,) = differences(ORIGINAL, OTHER[name])
    assert (difference.target, difference.component) == (NAME, "change")
    assert difference.relative is not None
    assert difference.relative > 1e-4


def test_a_doubled_adapter_agrees_with_the_change_that_is_left() -> None:
    """PiSSA as [A; A0] and [B, -B0] is B·A - B0·A0 in any other factors of rank 2r."""
    a0, b0 = A[::-1] + np.float32(0.5), B * np.float32(0.25)
    doubled = linear(np.vstack([A, a0]), np.hstack([B, -b0]))
    doubled = replace(doubled, targets=(replace(doubled.targets[0], initial=4),))
    left = B.astype(np.float64) @ A - b0.astype(np.float64) @ a0
    u, sizes, v = np.linalg.svd(left)
    again = linear(v[:8] * sizes[:8, None], u[:, :8])
    assert differences(doubled, again) == []
    assert differences(linear(A, B), again) != []


def test_order_of_experts_counts() -> None:
    """Experts 0 and 1 swapped, in both factors or in one, is another change."""
    a, b = np.stack([A, -A[::-1], A * 2]), np.stack([B, B * 3, -B])
    swap = [1, 0, 2]
    assert differences(experts(a, b), experts(a * 2, b / 2)) == []
    for wrong in (experts(a[swap], b[swap]), experts(a, b[swap]), experts(a[swap], b)):
        assert [found.component for found in differences(experts(a, b), wrong)] == ["change"]


def test_a_round_trip_through_peft_agrees(tmp_path: Path) -> None:
    """PEFT has no place for a layout or a name of a tensor; the change comes back."""
    converter.write(ORIGINAL, tmp_path / "peft")
    again, _ = converter.read(tmp_path / "peft")
    assert differences(linear(A, B * np.float32(0.5), scale=4.0, layout=("in", "out")), again) == []


def test_components_and_names_are_compared_too() -> None:
    """What only one of them has comes first, then the worst."""
    target = ORIGINAL.targets[0]
    one = Adapter(targets=(target, replace(target, name="first")))
    changed = replace(target, scale=3.0, tensors={**target.tensors, "magnitude": from_array(np.ones(12, np.float32))})
    other = Adapter(targets=(changed, replace(target, name="second")))
    found = agree(certify(one), certify(other))
    assert [(difference.target, difference.component, difference.reason) for difference in found] == [
        ("first", "", "only the first changes it"),
        (NAME, "magnitude", "only the second has it"),
        ("second", "", "only the second changes it"),
        (NAME, "change", "differs"),
    ]
    assert found[-1].relative is not None
    assert found[-1].relative >= 1 / 3  # a third of everything: the largest difference is at least the mean one


def test_the_tolerance_is_relative_to_the_larger_root_mean_square() -> None:
    """Section 11.1, on numbers to be checked by hand; huge numbers and none at all included."""
    small, large = Probe((3.0,) + (0.0,) * 7, 3.0), Probe((4.0,) + (0.0,) * 7, 4.0)
    size = (16 / 8) ** 0.5
    assert relative_difference(small, large) == pytest.approx(1 / size)
    one, other = (Certificate({"w": {"change": probe}}) for probe in (small, large))
    assert agree(one, other, 1.0001 / size) == []
    assert len(agree(one, other, 0.9999 / size)) == 1
    huge = Probe((1e300,) * 8, 1e300)
    assert relative_difference(huge, Probe((1.5e300,) * 8, 2e300)) == pytest.approx(1 / 3)
    nothing = Probe((0.0,) * 8, 0.0)
    assert relative_difference(nothing, nothing) == 0.0
    assert relative_difference(nothing, small) > 1


def test_what_no_certificate_shows_is_compared_beside_it() -> None:
    """A gate, and the rows and the length of a tokens target."""
    value = from_array(np.ones((2, 4), np.float32))
    tokens = Target(
        name="e", kind=Kind.TOKENS, layout=("in", "out"), shape=(9, 4), tensors={"value": value}, rows=(1, 2)
    )
    one = Adapter(targets=(tokens,))
    other = Adapter(targets=(replace(tokens, rows=(9, 10), length=11),), gate=(5,))
    assert agree(certify(one), certify(other)) == []
    assert [found.component for found in unseen(one, other)] == ["gate", "rows", "length"]
    assert unseen(one, one) == []


def test_names_that_differ_by_one_prefix_are_the_same_names() -> None:
    """A wrapper's prefix on all names is taken off, or put on, and said; no other renaming is guessed."""
    wrapped = linear(A, B, name=f"wrapper.{NAME}")
    renamed, prefix = with_names_of(ORIGINAL, wrapped)
    assert (renamed.targets[0].name, prefix) == (f"wrapper.{NAME}", Prefix(added="wrapper."))
    renamed, prefix = with_names_of(wrapped, ORIGINAL)
    assert (renamed.targets[0].name, prefix) == (NAME, Prefix(dropped="wrapper."))
    for unlike in (ORIGINAL, linear(A, B, name="something.else")):
        assert with_names_of(unlike, ORIGINAL) == (unlike, Prefix())


def test_two_prefixes_that_do_equally_well_decide_nothing() -> None:
    """An encoder's names fit an encoder-decoder twice."""
    both = Adapter(targets=tuple(linear(A, B, name=f"{side}.{NAME}").targets[0] for side in ("encoder", "decoder")))
    with pytest.raises(InconclusiveError):
        with_names_of(ORIGINAL, both)


def test_a_prefix_that_makes_two_names_one_is_not_used() -> None:
    """``a`` and ``p.a`` beside ``p.a``: neither is given up in silence."""
    short, long, more = (linear(A, B, name=name).targets[0] for name in ("x.a", "p.x.a", "x.b"))
    one = Adapter(targets=(short, long, more))
    other = Adapter(targets=(long, replace(more, name="p.x.b")))
    assert with_names_of(one, other) == (one, Prefix())
