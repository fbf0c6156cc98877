"""How alike two adapters are, against dense float64 matrices and against pairs whose answer is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from algebra_adapters import OUT, adapter, dense, target

from lora_registry.adapter import Base, Kind, Target
from lora_registry.algebra.combine import negate
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.similarity import Similarity, compare
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import from_array

FORMS: dict[str, dict[str, Any]] = {
    "linear": {"kind": Kind.LINEAR},
    "embedding": {"kind": Kind.EMBEDDING},
    "conv": {"kind": Kind.CONV},
    "grouped conv": {"kind": Kind.CONV, "groups": 3},
    "experts": {"kind": Kind.EXPERTS},
    "bias": {"kind": Kind.BIAS},
}


def similarity(one: Target, other: Target) -> Similarity:
    [found] = compare(adapter(one), adapter(other)).targets
    return found


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_figures_are_those_of_the_dense_changes(form: dict[str, Any]) -> None:
    """Cosine, opposite signs, and what is gone in the sum."""
    one, other = target(seed=1, **form), target(seed=2, rank=3, scale=-0.3, **form)
    x, y = dense(one), dense(other)
    found = similarity(one, other)
    assert found.norms == pytest.approx((np.linalg.norm(x), np.linalg.norm(y)))
    assert found.cosine == pytest.approx(np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y))
    assert found.conflict == np.mean(x * y < 0)
    assert found.cancelled == pytest.approx(1 - np.abs(x + y).sum() / (np.abs(x) + np.abs(y)).sum(), abs=1e-6)


def test_the_overlap_is_that_of_the_dense_spaces() -> None:
    """‖UᵀV‖² over the smaller rank, with the singular vectors of the whole matrices."""
    one, other = target(seed=1), target(seed=2, rank=3)
    (u, _, ut), (v, _, vt) = (np.linalg.svd(dense(each)) for each in (one, other))
    found = similarity(one, other)
    assert found.outputs == pytest.approx(np.linalg.norm(u[:, :2].T @ v[:, :3]) ** 2 / 2)
    assert found.inputs == pytest.approx(np.linalg.norm(ut[:2] @ vt[:3].T) ** 2 / 2)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_adapter_is_its_own_likeness_and_its_negative_is_not(form: dict[str, Any]) -> None:
    """All of it agrees; or all of it is gone."""
    one = adapter(target(**form))
    [same], [opposite] = compare(one, one).targets, compare(one, negate(Parent(one))).targets
    assert (same.cosine, same.outputs, same.inputs) == pytest.approx((1, 1, 1))
    assert (same.conflict, same.cancelled) == (0, pytest.approx(0, abs=1e-7))
    assert (opposite.cosine, opposite.outputs) == pytest.approx((-1, 1))
    assert (opposite.conflict, opposite.cancelled) == (1, 1)


def test_changes_of_other_rows_have_nothing_to_do_with_each_other() -> None:
    """One acts on the first outputs, one on the last: no overlap there, whatever they read."""
    one, other = target(seed=1), target(seed=2)
    b = np.random.default_rng(0).standard_normal((OUT, 2)).astype(np.float32)
    rows = np.arange(OUT)[:, None] < OUT // 2
    one = replace(one, tensors={**one.tensors, "B": from_array(np.where(rows, b, 0))})
    other = replace(other, tensors={**other.tensors, "B": from_array(np.where(rows, 0, b))})
    found = similarity(one, other)
    assert (found.cosine, found.outputs, found.conflict, found.cancelled) == pytest.approx((0, 0, 0, 0), abs=1e-7)
    assert found.inputs > 0


def test_a_change_of_nothing_is_like_nothing() -> None:
    """Zeros have no direction: the figures are zeros, not NaN."""
    zero = replace(target(), scale=0.0)
    found = similarity(zero, target(seed=1))
    assert (found.cosine, found.outputs, found.inputs, found.conflict, found.cancelled) == (0, 0, 0, 0, 0)


def test_what_only_one_changes_and_what_is_no_change_is_named() -> None:
    """Names by side, and a line for what was not compared."""
    value = Target(
        name="h", kind=Kind.FULL, layout=(), shape=(2,), tensors={"value": from_array(np.ones(2, np.float32))}
    )
    magnitude = from_array(np.ones(OUT, np.float32))
    dora = replace(target(name="d"), tensors={**target().tensors, "magnitude": magnitude})
    tensors = {"index": from_array(np.array([3])), "delta": from_array(np.ones(1, np.float32))}
    sparse = Target(name="s", kind=Kind.SPARSE, layout=(), shape=(4, 5), tensors=tensors)
    both = (target(), value, dora, sparse)
    found = compare(adapter(*both, target(name="x")), adapter(*both, target(name="y")))
    assert found.only == (("x",), ("y",))
    assert [one.target for one in found.targets] == ["d", "w"]
    assert found.notes == (
        "d: compared without its magnitude (DoRA)",
        "h: not compared: a full target with a value, which is no change",
        "s: not compared: a sparse change has no two factors; ask for dense, which multiplies it out",
    )
    dense_too = compare(adapter(*both), adapter(*both), dense=True)
    assert [one.target for one in dense_too.targets] == ["d", "s", "w"]
    assert dense_too.cosine == pytest.approx(1)


def test_different_bases_are_said() -> None:
    """Changes of other models may be compared; that they are is no secret."""
    one = adapter(target(fingerprint=Digest.of(b"1")), base=Base(name="a"))
    other = adapter(target(fingerprint=Digest.of(b"2")), base=Base(name="b"))
    notes = ("made for different bases: a and b", "1 target: made for base tensors of other values")
    assert compare(one, other).notes == notes
    assert compare(one, one).notes == ()
    assert compare(one, adapter(target(), base=Base())).notes == ()


def test_what_is_not_finite_cannot_be_compared() -> None:
    """A matrix and a bias."""
    for kind, role in ((Kind.LINEAR, "B"), (Kind.BIAS, "delta")):
        broken = target(kind)
        nan = from_array(np.full(broken.tensors[role].shape, np.nan, np.float32))
        broken = replace(broken, tensors={**broken.tensors, role: nan})
        with pytest.raises(InvalidInputError, match="w: its change is not finite"):
            compare(adapter(target(kind)), adapter(broken))


def test_targets_of_other_shapes_cannot_be_compared() -> None:
    """They are not of one base."""
    with pytest.raises(InvalidInputError, match="differ in its kind"):
        compare(adapter(target()), adapter(target(Kind.EMBEDDING)))
