"""Fewer ranks: the certified error is the dense one, and what is small enough stays as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from algebra_adapters import EXPERTS, IN, OUT, adapter, apart, dense, target

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.lowering import lowered
from lora_registry.algebra.resize import resize
from lora_registry.algebra.spectrum import spectrum
from lora_registry.algebra.truncation import Truncation
from lora_registry.errors import InvalidInputError, UnsupportedError, UsageError
from lora_registry.format.identity import content_digest
from lora_registry.format.writer import encode_adapter
from lora_registry.ops.agreement import agree
from lora_registry.ops.arrays import from_array, to_array
from lora_registry.ops.probe import certify

FORMS: dict[str, dict[str, Any]] = {
    "linear": {"kind": Kind.LINEAR},
    "transposed": {"kind": Kind.LINEAR, "layout": ("in", "out")},
    "embedding": {"kind": Kind.EMBEDDING},
    "conv": {"kind": Kind.CONV},
    "grouped conv": {"kind": Kind.CONV, "groups": 3},
    "experts": {"kind": Kind.EXPERTS},
}
EACH_FORM = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


def only(adapter: Adapter) -> Target:
    [one] = adapter.targets
    return one


@EACH_FORM
@pytest.mark.parametrize("truncation", [Truncation(rank=2), Truncation(energy=0.8)], ids=["rank", "energy"])
def test_the_certified_error_is_that_of_the_dense_change(truncation: Truncation, form: dict[str, Any]) -> None:
    """Frobenius, relative, from the discarded singular values alone."""
    one = target(rank=4, **form)
    made, [retention] = resize(Parent(adapter(one)), truncation, dtype="F64")
    result = only(made)
    assert result.rank is not None
    assert one.rank is not None
    assert result.rank < one.rank
    assert retention.norm == pytest.approx(np.linalg.norm(dense(one)), rel=1e-12)
    assert apart(dense(result), dense(one)) == pytest.approx(retention.truncation, rel=1e-9)
    assert retention.rank == result.rank
    if truncation.energy is not None:
        assert retention.energy >= truncation.energy


def test_an_energy_takes_the_fewest_ranks_that_hold_it() -> None:
    """One rank less would hold less than was asked for; exactly what one rank holds takes one rank."""
    one = target(rank=5)
    values = np.linalg.svd(dense(one), compute_uv=False)
    shares = np.cumsum(values**2) / np.sum(values**2)
    for energy, rank in ((shares[1] - 1e-9, 2), (shares[1] + 1e-9, 3), (1e-9, 1), (1.0, 5)):
        assert only(resize(Parent(adapter(one)), Truncation(energy=energy))[0]).rank == rank


@EACH_FORM
@pytest.mark.parametrize("truncation", [Truncation(rank=99), Truncation(energy=1.0)], ids=["rank", "energy"])
def test_full_rank_is_the_adapter_itself(truncation: Truncation, form: dict[str, Any]) -> None:
    """The same content, bit for bit, bfloat16 factors included."""
    one = adapter(target(rank=3, **form))
    made, [retention] = resize(Parent(one), truncation)
    assert content_digest(made) == content_digest(one)
    assert (retention.truncation, retention.rounding, retention.energy) == (0, 0, 1)


def test_ranks_that_change_nothing_go_without_an_error() -> None:
    """Padded and repeated directions are not a change: the probe finds the same one."""
    one = target(rank=2)
    a, b = (to_array(one.tensors[role]) for role in "AB")
    padded = replace(one, tensors={"A": from_array(np.vstack([a, a, a * 0])), "B": from_array(np.hstack([b, b, b]))})
    made, [retention] = resize(Parent(adapter(padded)), Truncation(energy=1.0))
    assert only(made).rank == 2
    assert retention.truncation < 1e-12
    assert not agree(certify(made), certify(adapter(padded)))


def test_a_change_of_nothing_has_rank_one() -> None:
    """The format has no rank 0."""
    one = target(rank=3)
    zero = replace(one, tensors={**one.tensors, "B": from_array(np.zeros((OUT, 3), np.float32))})
    made, [retention] = resize(Parent(adapter(zero)), Truncation(energy=0.9))
    assert only(made).rank == 1
    assert not dense(only(made)).any()
    assert (retention.norm, retention.truncation, retention.rounding) == (0, 0, 0)


def test_what_has_no_rank_stays_and_the_document_says_what_was_done() -> None:
    """Biases and values as they are, the title too; no configuration of another rank."""
    value = Target(
        name="h", kind=Kind.FULL, layout=(), shape=(2,), tensors={"value": from_array(np.ones(2, np.float32))}
    )
    one = adapter(
        target(rank=3),
        target(Kind.BIAS, name="b"),
        value,
        gate=(7,),
        info={"title": "tone", "license": "MIT"},
        origin={"format": "peft", "config": {"r": 3}},
    )
    made, retentions = resize(Parent(one, "team/tone:1"), Truncation(rank=1), dtype="BF16")
    assert [retention.target for retention in retentions] == ["w"]
    assert made.target("b") is one.target("b")
    assert made.target("h") is one.target("h")
    assert (made.info, made.origin, made.gate) == (one.info, {}, (7,))
    assert made.lineage == {
        "operation": "resize",
        "parameters": {"rank": 1, "dtype": "BF16"},
        "parents": [{"content": str(content_digest(one)), "name": "team/tone:1"}],
    }


@pytest.mark.parametrize("kind", [Kind.LINEAR, Kind.LOKR])
def test_the_value_that_a_change_is_made_on_stays(kind: Kind) -> None:
    """It stands in for the base tensor; losing it would be losing most of the adapter."""
    one = target(rank=3) if kind is Kind.LINEAR else lokr()[0]
    valued = replace(one, tensors={**one.tensors, "value": from_array(np.ones((OUT, IN), np.float32))})
    made, _ = resize(Parent(adapter(valued)), Truncation(rank=1), dense=True)
    assert only(made).rank == 1
    assert only(made).tensors["value"] is valued.tensors["value"]
    encode_adapter(made)


def test_what_cannot_be_resized_is_refused_by_name() -> None:
    """DoRA, NaN, and a request for nothing."""
    one = target()
    dora = replace(one, tensors={**one.tensors, "magnitude": from_array(np.ones(OUT, np.float32))})
    with pytest.raises(UnsupportedError, match=r"w: has a magnitude \(DoRA\)"):
        resize(Parent(adapter(dora)), Truncation(rank=1))
    broken = replace(one, tensors={**one.tensors, "A": from_array(np.full((2, IN), np.inf, np.float32))})
    with pytest.raises(InvalidInputError, match="w: its change is not finite"):
        resize(Parent(adapter(broken)), Truncation(rank=1))
    with pytest.raises(UsageError, match="a rank or an energy"):
        resize(Parent(adapter(one)), Truncation())
    with pytest.raises(UsageError, match="no type of factors"):
        resize(Parent(adapter(one)), Truncation(rank=1), dtype="I8")


@pytest.mark.parametrize(
    ("rank", "energy", "said"),
    [(1, 0.5, "not both"), (0, None, "no change has rank 0"), (None, 0.0, "0 is no share"), (None, 1.5, "1.5 is no")],
)
def test_a_truncation_that_makes_no_sense_is_refused(rank: int | None, energy: float | None, said: str) -> None:
    """Each in words."""
    with pytest.raises(UsageError, match=said):
        Truncation(rank, energy)


def lokr(layout: tuple[str, ...] = ("out", "in")) -> tuple[Target, np.ndarray[Any, Any]]:
    random = np.random.default_rng(4)
    c1, a2, b2 = (random.standard_normal(shape).astype(np.float32) for shape in ((3, 2), (2, 5), (4, 2)))
    wanted = 0.5 * np.kron(c1.astype(np.float64), b2.astype(np.float64) @ a2)
    shape = (OUT, IN) if layout[0] == "out" else (IN, OUT)
    tensors = {"C1": from_array(c1), "A2": from_array(a2), "B2": from_array(b2)}
    return Target(name="w", kind=Kind.LOKR, layout=layout, shape=shape, tensors=tensors, scale=0.5), wanted


@pytest.mark.parametrize("layout", [("out", "in"), ("in", "out")])
def test_a_kronecker_product_is_lowered_to_the_rank_that_it_has(layout: tuple[str, ...]) -> None:
    """The rank of a Kronecker product is the product of the ranks, here 2 · 2."""
    one, wanted = lokr(layout)
    assert lowered(one).rank == 4
    assert apart(dense(lowered(one)), wanted) < 1e-12
    made, [retention] = resize(Parent(adapter(one)), Truncation(rank=2), dense=True, dtype="F64")
    assert apart(dense(only(made)), wanted) == pytest.approx(retention.truncation, rel=1e-9)
    same, none = resize(Parent(adapter(one)), Truncation(rank=2))
    assert (only(same), none) == (one, ())


@EACH_FORM
def test_the_spectrum_is_that_of_the_dense_change(form: dict[str, Any]) -> None:
    """Singular values of all experts or groups together, their norm, and the stable rank."""
    one = target(rank=3, **form)
    change = dense(one)
    parts = np.split(change, one.groups) if one.groups > 1 else change if len(change) == EXPERTS else [change]
    values = np.sort(np.concatenate([np.linalg.svd(part, compute_uv=False)[:3] for part in parts]))[::-1]
    found = spectrum(one)
    assert np.allclose(found.values, values)
    assert found.norm == pytest.approx(np.linalg.norm(change))
    assert found.stable_rank == pytest.approx((np.linalg.norm(change) / values[0]) ** 2)
