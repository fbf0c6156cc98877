"""Combinations against dense float64 formulas, and the laws that a sum of changes obeys."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from algebra_adapters import OUT, Array, adapter, apart, dense, target, weighted

from lora_registry.adapter import Adapter, Base, Kind, Target
from lora_registry.algebra.combine import Combination, Weighted, combine, negate, subtract
from lora_registry.algebra.election import Convention
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.algebra.truncation import Truncation
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError, UsageError
from lora_registry.format.identity import content_digest
from lora_registry.format.writer import encode_adapter
from lora_registry.ops.agreement import agree
from lora_registry.ops.arrays import from_array, to_array
from lora_registry.ops.change import merged
from lora_registry.ops.probe import certify
from lora_registry.segments import Segment, Segments

FORMS: list[tuple[str, dict[str, Any]]] = [
    ("linear", {"kind": Kind.LINEAR}),
    ("transposed", {"kind": Kind.LINEAR, "layout": ("in", "out")}),
    ("embedding", {"kind": Kind.EMBEDDING}),
    ("conv", {"kind": Kind.CONV}),
    ("grouped conv", {"kind": Kind.CONV, "groups": 3}),
    ("experts", {"kind": Kind.EXPERTS}),
    ("transposed experts", {"kind": Kind.EXPERTS, "layout": ("in", "out")}),
    ("bias", {"kind": Kind.BIAS}),
]
EACH_FORM = pytest.mark.parametrize("form", [form for _, form in FORMS], ids=[name for name, _ in FORMS])
MERGEABLE = [form for name, form in FORMS if name != "grouped conv"]  # which no merge has a place for


def mixed(recipe: Recipe, weights: tuple[float, ...], *targets: Target) -> Combination:
    """Adapters of one target each, combined."""
    parts = [Weighted(Parent(adapter(one)), weight) for one, weight in zip(targets, weights, strict=True)]
    return combine(parts, recipe)


def only(adapter: Adapter) -> Target:
    [one] = adapter.targets
    return one


@EACH_FORM
@pytest.mark.parametrize("method", [Method.CAT, Method.LINEAR])
def test_a_sum_is_the_sum_of_the_changes_and_has_no_cross_terms(method: Method, form: dict[str, Any]) -> None:
    """Other ranks, scales and element types on either side; in float64 the result is exact to its rounding."""
    one = target(seed=1, rank=2, scale=0.7, **form)
    two = target(seed=2, rank=3, scale=-2.0, dtype=ml_dtypes.bfloat16, **form)
    made = mixed(Recipe(method=method, dtype="F64"), (0.6, 0.3), one, two)
    wanted = weighted([dense(one), dense(two)], (0.6, 0.3))
    assert apart(dense(only(made.adapter)), wanted) < 1e-13
    encode_adapter(made.adapter)
    [retention] = made.retentions
    assert retention.truncation == 0
    assert retention.norm == pytest.approx(np.linalg.norm(wanted), rel=1e-12)
    if one.kind is not Kind.BIAS:
        largest = OUT // one.groups if method is Method.LINEAR else 2 + 3  # four outputs have four ranks at most
        assert only(made.adapter).rank == one.groups * min(2 + 3, largest)


@EACH_FORM
@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_the_rounding_that_is_certified_is_the_rounding_there_is(dtype: str, form: dict[str, Any]) -> None:
    """Against the dense change of the written factors."""
    one, two = target(seed=1, scale=0.7, **form), target(seed=2, rank=3, **form)
    made = mixed(Recipe(method=Method.LINEAR, dtype=dtype), (0.6, 0.3), one, two)
    wanted = weighted([dense(one), dense(two)], (0.6, 0.3))
    [retention] = made.retentions
    assert retention.rounding > 0
    assert apart(dense(only(made.adapter)), wanted) == pytest.approx(retention.rounding, rel=1e-4)


def test_cat_keeps_the_bits_of_every_a_and_the_largest_b() -> None:
    """The multiplier of the largest is the scale; the others' B take what they lack of it, here a power of two."""
    one, two = target(seed=1, scale=2.0), target(seed=2, scale=1.0)
    made = mixed(Recipe(method=Method.CAT), (1.0, 1.0), one, two)
    result = only(made.adapter)
    a, b = (to_array(result.tensors[role]) for role in "AB")
    assert result.scale == 2.0
    assert np.array_equal(a, np.concatenate([to_array(each.tensors["A"]) for each in (one, two)]))
    assert np.array_equal(b[:, :2], to_array(one.tensors["B"]))
    assert np.array_equal(b[:, 2:], to_array(two.tensors["B"]) / 2)
    assert made.retentions[0].rounding == 0


@pytest.mark.parametrize("form", MERGEABLE)
@pytest.mark.parametrize("method", [Method.CAT, Method.LINEAR])
def test_merging_the_sum_is_merging_both(method: Method, form: dict[str, Any]) -> None:
    """W + (ΔX + ΔY) through the merge of one file, and one after the other."""
    one, two = target(seed=1, **form), target(seed=2, rank=3, **form)
    assert one.shape is not None
    base = np.random.default_rng(0).standard_normal(one.shape)
    both = merged(only(mixed(Recipe(method=method, dtype="F64"), (1.0, 1.0), one, two).adapter), base)
    assert np.allclose(both, merged(two, merged(one, base)), rtol=0, atol=1e-12)


@EACH_FORM
def test_the_svd_of_the_sum_is_the_best_approximation(form: dict[str, Any]) -> None:
    """The error that is certified is that of the dense matrix, and no rank does better (Eckart and Young)."""
    one, two = target(seed=1, rank=3, **form), target(seed=2, rank=3, **form)
    made = mixed(Recipe(method=Method.SVD, truncation=Truncation(rank=2), dtype="F64"), (1.0, -0.5), one, two)
    wanted, result = weighted([dense(one), dense(two)], (1.0, -0.5)), only(made.adapter)
    [retention] = made.retentions
    if one.kind is Kind.BIAS:
        assert apart(dense(result), wanted) < 1e-15
        return
    assert result.rank == 2 * one.groups
    assert apart(dense(result), wanted) == pytest.approx(retention.truncation, rel=1e-9)
    parts = np.split(wanted, one.groups) if one.groups > 1 else wanted if one.kind is Kind.EXPERTS else [wanted]
    discarded = np.concatenate([np.linalg.svd(part, compute_uv=False)[2:] for part in parts])
    assert retention.truncation == pytest.approx(np.linalg.norm(discarded) / np.linalg.norm(wanted), rel=1e-9)
    assert retention.energy == pytest.approx(1 - retention.truncation**2)


def test_at_full_rank_the_probe_finds_the_same_change_in_every_method_of_the_sum() -> None:
    """cat, linear and svd are one change in other factors."""
    one, two = target(seed=1), target(seed=2, rank=3)
    made = [
        certify(mixed(Recipe(method=method, truncation=truncation), (0.7, 0.3), one, two).adapter)
        for method, truncation in (
            (Method.CAT, Truncation()),
            (Method.LINEAR, Truncation()),
            (Method.SVD, Truncation(rank=5)),
            (Method.SVD, Truncation(energy=1)),
        )
    ]
    for other in made[1:]:
        assert not agree(made[0], other, 1e-6)
    assert agree(made[0], certify(adapter(one)))


def test_the_probe_finds_nothing_left_of_an_adapter_without_itself() -> None:
    """A - A is no change at all, and has the probe of zeros."""
    one = adapter(target(seed=1), target(Kind.EXPERTS, seed=2, name="x"), target(Kind.BIAS, seed=3, name="y"))
    made = subtract(Parent(one), Parent(one))
    probes = certify(made.adapter).targets
    assert len(probes) == 3
    assert all(number == 0 for components in probes.values() for number in components["change"].numbers)


def test_subtracting_gives_back_what_was_added() -> None:
    """(A + B) - B is A."""
    one, two = adapter(target(seed=1)), adapter(target(seed=2, rank=3))
    both = combine([Weighted(Parent(one)), Weighted(Parent(two))], Recipe(dtype="F64")).adapter
    again = subtract(Parent(both), Parent(two), Recipe(dtype="F64")).adapter
    assert only(again).rank == 2
    assert not agree(certify(again), certify(one), 1e-12)


@EACH_FORM
def test_the_negative_of_the_negative_is_the_adapter(form: dict[str, Any]) -> None:
    """Twice negated is the same content, bit for bit; once is the opposite change."""
    one = adapter(target(seed=1, **form))
    opposite = negate(Parent(one))
    assert np.array_equal(dense(only(opposite)), -dense(only(one)))
    assert content_digest(negate(Parent(opposite))) == content_digest(one)
    assert opposite.lineage["operation"] == "negate"


def test_an_orthogonal_sum_shares_no_direction() -> None:
    """What the second adds is orthogonal to the first, as a vector and in both of its spaces; the first is whole."""
    one, two = target(seed=1), target(seed=2, rank=3)
    made = mixed(Recipe(method=Method.ORTHOGONAL, dtype="F64"), (1.0, 2.0), one, two)
    added = dense(only(made.adapter)) - dense(one)
    assert np.linalg.norm(added) > 0.1
    for product in (np.vdot(added, dense(one)), added.T @ dense(one), added @ dense(one).T):
        assert np.abs(product).max() < 1e-12
    u, _, vt = np.linalg.svd(dense(one), full_matrices=False)
    u, vt = u[:, :2], vt[:2]
    wanted = 2 * (np.eye(OUT) - u @ u.T) @ dense(two) @ (np.eye(vt.shape[1]) - vt.T @ vt)
    assert apart(added, wanted) < 1e-12


def test_two_layouts_of_one_base_tensor_are_one_tensor() -> None:
    """Factors are in logical order whichever way the base stores the weight; the first says which."""
    one, two = target(seed=1), target(seed=2, layout=("in", "out"))
    result = only(mixed(Recipe(), (1.0, 1.0), one, two).adapter)
    assert (result.layout, result.shape) == (one.layout, one.shape)
    assert apart(dense(result), dense(one) + dense(two)) < 1e-6


def test_outputs_in_another_order_are_put_into_that_of_the_first() -> None:
    """Segments say where the rows of a fused tensor belong; the base in the other order is another tensor."""
    q, k = Segment("q", OUT - 4), Segment("k", 4)
    one = target(seed=1, segments=Segments((q, k)), fingerprint=Digest.of(b"1"))
    two = target(seed=2, segments=Segments((k, q)), fingerprint=Digest.of(b"2"))
    result = only(mixed(Recipe(), (1.0, 1.0), one, two).adapter)
    assert (result.segments, result.fingerprint) == (one.segments, one.fingerprint)
    assert apart(dense(result), dense(one) + np.roll(dense(two), -4, axis=0)) < 1e-6


def test_ranks_that_undo_an_initialization_are_ranks_like_others_afterwards() -> None:
    """PiSSA's negated initial factors are part of the change, and no longer the last ranks of the sum."""
    one = target(seed=1, rank=4, initial=2)
    for method in (Method.CAT, Method.LINEAR):
        result = only(mixed(Recipe(method=method), (1.0, 1.0), one, target(seed=2)).adapter)
        assert result.initial == 0
        assert apart(dense(result), dense(one) + dense(target(seed=2))) < 1e-6


def test_a_tensor_that_only_some_change_is_changed_by_those() -> None:
    """No adapter has to have every target."""
    one = adapter(target(seed=1), target(seed=2, name="x"))
    made = combine([Weighted(Parent(one), 0.5), Weighted(Parent(adapter(target(seed=3))), 2.0)], Recipe()).adapter
    assert [each.name for each in made] == ["w", "x"]
    assert apart(dense(made.target("x")), 0.5 * dense(one.target("x"))) < 1e-6


def full(name: str = "head", value: float = 1.0) -> Target:
    values = from_array(np.full((2, 3), value, np.float32))
    return Target(name=name, kind=Kind.FULL, layout=(), shape=(2, 3), tensors={"value": values})


def test_values_that_one_adapter_alone_replaces_are_taken_over_and_it_is_said() -> None:
    """A replacement has no weight; where two have a say it is refused, and so is taking it away."""
    one, two = adapter(target(), full()), adapter(target(seed=1))
    made = combine([Weighted(Parent(one), 0.5), Weighted(Parent(two))], Recipe())
    assert made.adapter.target("head") is one.target("head")
    assert made.notes == ("head: replaces values, to which the weight 0.5 does not apply; kept",)
    with pytest.raises(UnsupportedError, match="head: one adapter replaces its values"):
        combine([Weighted(Parent(one)), Weighted(Parent(one))], Recipe())
    with pytest.raises(UnsupportedError, match="head: a full target replaces values"):
        subtract(Parent(two), Parent(one))
    with pytest.raises(UnsupportedError, match="head: a full target replaces values"):
        negate(Parent(one))


def trained(rows: tuple[int, ...], value: float, **more: Any) -> Target:
    """Trained rows of a table of width 3."""
    values = from_array(np.full((len(rows), 3), value, more.pop("dtype", np.float32)))
    return Target(
        name="t", kind=Kind.TOKENS, layout=("in", "out"), shape=more.pop("shape", None), tensors={"value": values},
        rows=rows, **more,
    )  # fmt: skip


def test_rows_that_no_two_adapters_replace_are_put_beside_each_other() -> None:
    """In ascending order, whichever adapter has them."""
    parts = [trained((1, 7), 1.0), trained((0, 3, 9), 2.0, shape=(20, 3)), trained((4,), 3.0)]
    made = only(mixed(Recipe(method=Method.CAT), (1.0, 1.0, 1.0), *parts).adapter)
    assert made.rows == (0, 1, 3, 4, 7, 9)
    assert made.shape == (20, 3)
    assert to_array(made.tensors["value"])[:, 0].tolist() == [2, 1, 2, 3, 1, 2]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (trained((2, 7), 2.0), "t: several adapters replace its rows 7"),
        (trained((2,), 2.0, dtype=np.float16), "t: the adapters replace rows of other tables"),
        (trained((2,), 2.0, shape=(20, 3)), "t: the adapters replace rows of other tables"),
        (trained((30,), 2.0, length=31), "t: the adapters replace rows of other tables"),
        (full("t"), "t: one adapter replaces its values, and another one changes them too"),
    ],
)
def test_rows_that_do_not_go_together_are_refused(other: Target, said: str) -> None:
    """The same row twice, another element type, length or shape of the table, or something else on it."""
    with pytest.raises(UnsupportedError, match=said):
        mixed(Recipe(method=Method.CAT), (1.0, 1.0), trained((1, 7), 1.0, shape=(21, 3)), other)


def loha(**more: Any) -> Target:
    random = np.random.default_rng(9)
    shapes = {"A1": (2, 10), "B1": (OUT, 2), "A2": (3, 10), "B2": (OUT, 3)}
    tensors = {role: from_array(random.standard_normal(shape).astype(np.float32)) for role, shape in shapes.items()}
    return Target(name="w", kind=Kind.LOHA, layout=("out", "in"), shape=(OUT, 10), tensors=tensors, scale=0.5, **more)


def test_what_has_no_two_factors_is_refused_by_name_or_multiplied_out() -> None:
    """LoHa, LoKr and sparse changes become two factors at the rank that they have."""
    other = target(seed=1)
    with pytest.raises(UnsupportedError, match="w: a loha change has no two factors"):
        mixed(Recipe(), (1.0, 1.0), loha(), other)
    part = {role: to_array(tensor).astype(np.float64) for role, tensor in loha().tensors.items()}
    wanted = 0.5 * (part["B1"] @ part["A1"]) * (part["B2"] @ part["A2"])
    made = mixed(Recipe(dense=True, dtype="F64"), (1.0, 1.0), loha(), other)
    assert only(made.adapter).kind is Kind.LINEAR
    assert only(made.adapter).rank == 2 * 3 + 2
    assert apart(dense(only(made.adapter)), wanted + dense(other)) < 1e-12


def test_a_sparse_change_lies_as_the_base_stores_it() -> None:
    """Its layout is that of the adapter beside it."""
    random, places = np.random.default_rng(3), np.array([0, 5, 17, 119])
    values = random.standard_normal(4).astype(np.float32)
    for layout, shape in ((("out", "in"), (OUT, 10)), (("in", "out"), (10, OUT))):
        tensors = {"index": from_array(places), "delta": from_array(values)}
        sparse = Target(name="w", kind=Kind.SPARSE, layout=(), shape=shape, tensors=tensors, scale=2.0)
        stored = np.zeros(shape)
        stored.reshape(-1)[places] = 2.0 * values.astype(np.float64)
        beside = target(seed=1, layout=layout)
        for pair in ((sparse, beside), (beside, sparse)):
            result = only(mixed(Recipe(dense=True, dtype="F64"), (1.0, 1.0), *pair).adapter)
            logical = stored if layout[0] == "out" else stored.T
            assert apart(dense(result), dense(beside) + logical) < 1e-12


@pytest.mark.parametrize(
    ("shape", "beside"),
    [((OUT,), target(Kind.BIAS)), ((3, OUT, 10), target(Kind.EXPERTS)), ((3, OUT, 10), None), ((), None)],
    ids=["bias", "experts", "nothing", "scalar"],
)
def test_a_sparse_change_that_is_no_matrix_is_refused(shape: tuple[int, ...], beside: Target | None) -> None:
    """Nobody knows which of its axes are outputs."""
    tensors = {"index": from_array(np.array([0])), "delta": from_array(np.ones(1, np.float32))}
    sparse = Target(name="w", kind=Kind.SPARSE, layout=(), shape=shape, tensors=tensors)
    others = [] if beside is None else [beside]
    with pytest.raises(UnsupportedError, match="w: a sparse change of shape"):
        mixed(Recipe(dense=True), (1.0,) * (1 + len(others)), *others, sparse)


def test_a_loha_change_that_is_not_finite_is_refused() -> None:
    """Before its singular values are looked for."""
    broken = replace(loha(), tensors={**loha().tensors, "B1": from_array(np.full((OUT, 2), np.nan, np.float32))})
    with pytest.raises(InvalidInputError, match="w: its change is not finite"):
        mixed(Recipe(dense=True), (1.0,), broken)


def test_what_is_not_linear_is_refused_by_name() -> None:
    """DoRA depends on the base, and a gate is on for some tokens only."""
    magnitude = from_array(np.ones(OUT, np.float32))
    dora = replace(target(), tensors={**target().tensors, "magnitude": magnitude})
    with pytest.raises(UnsupportedError, match=r"w: has a magnitude \(DoRA\)"):
        mixed(Recipe(), (1.0,), dora)
    with pytest.raises(UnsupportedError, match="activated LoRA"):
        combine([Weighted(Parent(adapter(target(), gate=(3,))))], Recipe())


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (target(Kind.EMBEDDING), "differ in its kind: linear and embedding"),
        (replace(target(), shape=(OUT, 11)), r"differ in its shape: \(12, 10\) and \(12, 11\)"),
    ],
)
def test_targets_that_are_not_of_one_tensor_are_refused(other: Target, said: str) -> None:
    """The message names the target and both sides."""
    with pytest.raises(InvalidInputError, match=f"w: the adapters {said}"):
        mixed(Recipe(), (1.0, 1.0), target(), other)


def test_convolutions_of_other_groups_are_refused() -> None:
    """Their factors connect other outputs with other inputs."""
    with pytest.raises(InvalidInputError, match="w: the adapters differ in its groups: 1 and 3"):
        mixed(Recipe(), (1.0, 1.0), target(Kind.CONV), target(Kind.CONV, groups=3))


def test_what_is_not_finite_or_beyond_the_dtype_is_refused() -> None:
    """NaN in, or infinity out: one line, no adapter."""
    broken = replace(target(), tensors={**target().tensors, "B": from_array(np.full((OUT, 2), np.nan, np.float32))})
    with pytest.raises(InvalidInputError, match="w: its change is not finite"):
        mixed(Recipe(), (1.0,), broken)
    with pytest.raises(InvalidInputError, match="w: its change is beyond the range of F16"):
        mixed(Recipe(dtype="F16"), (1e12,), target())
    bias = replace(target(Kind.BIAS), tensors={"delta": from_array(np.full(OUT, np.inf, np.float32))})
    with pytest.raises(InvalidInputError, match="w: its change is not finite"):
        mixed(Recipe(), (1.0,), bias)


def test_what_is_too_large_for_its_norm_is_refused() -> None:
    """Factors that are finite and a change that is not."""
    huge = {role: from_array(np.full(tensor.shape, 1e100)) for role, tensor in target().tensors.items()}
    for recipe in (Recipe(method=Method.CAT), Recipe(), ELEMENTS):
        with pytest.raises(InvalidInputError, match=r"not finite|beyond the range|beyond float64"):
            mixed(recipe, (1.0,), replace(target(), tensors=huge))


def test_names_under_another_prefix_are_those_of_the_first_and_it_is_said() -> None:
    """A wrapper's prefix on all names makes no second set of targets; parents are named as they are."""
    one, two = adapter(target(name="model.w")), adapter(target(seed=1, name="wrapped.model.w"))
    made = combine([Weighted(Parent(one)), Weighted(Parent(two))], Recipe())
    assert [each.name for each in made.adapter] == ["model.w"]
    assert made.notes == ("adapter 2: its names are taken under the prefix -wrapped.",)
    assert apart(dense(only(made.adapter)), dense(only(one)) + dense(only(two))) < 1e-6
    assert made.adapter.lineage["parents"] == [{"content": str(content_digest(each))} for each in (one, two)]


def test_different_bases_are_refused_unless_forced() -> None:
    """By name, by revision, by how they are quantized, and by fingerprint; forced, nothing is claimed."""
    one = adapter(target(fingerprint=Digest.of(b"1")), base=Base(name="a", revision="1"))
    for field, other in (
        ("name", adapter(target(), base=Base(name="b", revision="1"))),
        ("revision", adapter(target(), base=Base(name="a", revision="2"))),
    ):
        with pytest.raises(InvalidInputError, match=f"different bases: {field}"):
            combine([Weighted(Parent(one)), Weighted(Parent(other))], Recipe())
        made = combine([Weighted(Parent(one)), Weighted(Parent(other))], Recipe(force=True))
        assert getattr(made.adapter.base, field) is None
        assert any(note.startswith(f"base {field}: ") for note in made.notes)
    other = adapter(target(fingerprint=Digest.of(b"2")), base=one.base)
    with pytest.raises(InvalidInputError, match="w: the adapters were made for base tensors with 2 fingerprints"):
        combine([Weighted(Parent(one)), Weighted(Parent(other))], Recipe())
    forced = combine([Weighted(Parent(one)), Weighted(Parent(other))], Recipe(force=True))
    assert only(forced.adapter).fingerprint is None
    assert len(forced.notes) == 1


def test_the_result_says_what_it_was_made_of() -> None:
    """Parents by content and name, the parameters, the base and its fingerprints, and a license that all share."""
    one = adapter(target(fingerprint=Digest.of(b"1")), info={"title": "one", "license": "MIT"}, base=Base(name="b"))
    two = adapter(target(seed=1), info={"license": "MIT"}, base=Base(license="MIT"), origin={"format": "peft"})
    recipe = Recipe(method=Method.SVD, truncation=Truncation(rank=1))
    made = combine([Weighted(Parent(one, "team/one:1"), 0.5), Weighted(Parent(two), 2.0)], recipe).adapter
    assert made.lineage == {
        "operation": "combine",
        "parameters": {"method": "svd", "rank": 1, "dtype": "F32", "weights": [0.5, 2.0]},
        "parents": [
            {"content": str(content_digest(one)), "name": "team/one:1"},
            {"content": str(content_digest(two))},
        ],
    }
    assert made.base == Base(name="b", license="MIT")
    assert only(made).fingerprint == Digest.of(b"1")
    assert (made.info, made.origin) == ({"license": "MIT"}, {})
    unlike = combine([Weighted(Parent(one)), Weighted(Parent(replace(two, info={"license": "ISC"})))], Recipe())
    assert unlike.adapter.info == {}
    assert unlike.notes == ("license: the parents do not state one and the same; left out",)


ELEMENTS = Recipe(method=Method.MAGNITUDE, density=0.5, truncation=Truncation(rank=OUT), dtype="F64")


@pytest.mark.parametrize(
    "recipe",
    [
        ELEMENTS,
        replace(ELEMENTS, method=Method.DARE),
        *(replace(ELEMENTS, method=Method.TIES, convention=convention) for convention in Convention),
    ],
    ids=lambda recipe: f"{recipe.method} {recipe.convention}",
)
def test_elementwise_results_depend_on_the_change_and_not_on_its_factors(recipe: Recipe) -> None:
    """B·Q and Q⁻¹·A are the same adapter: so is the result, within the rounding of float32."""
    one, two = target(seed=1, rank=3), target(seed=2, rank=3)
    turned = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0]
    a, b = (to_array(one.tensors[role]).astype(np.float64) for role in "AB")
    same = replace(one, tensors={"A": from_array(turned.T @ a), "B": from_array(b @ turned)})
    made = [dense(only(mixed(recipe, (1.0, 1.0), each, two).adapter)) for each in (one, same)]
    assert apart(made[0], made[1]) < 1e-5


def test_dare_is_repeatable_by_its_seed_and_right_on_average() -> None:
    """The same seed, the same bytes; over many seeds the mean is the sum of the changes."""
    one, two = target(seed=1), target(seed=2)

    def drawn(seed: int) -> Adapter:
        return mixed(replace(ELEMENTS, method=Method.DARE, seed=seed), (0.7, 0.3), one, two).adapter

    assert content_digest(drawn(1)) == content_digest(drawn(1)) != content_digest(drawn(2))
    mean: Array = np.mean([dense(only(drawn(seed))) for seed in range(400)], axis=0)
    # One draw has the variance x²(1/p - 1), which is ‖x‖² at p = 1/2: 400 of them are within 5 % of it.
    assert apart(mean, weighted([dense(one), dense(two)], (0.7, 0.3))) < 0.08


def test_each_adapter_and_each_tensor_draws_for_itself() -> None:
    """One draw for all would drop the same elements everywhere, and the errors would add up instead of averaging."""
    recipe = replace(ELEMENTS, method=Method.DARE)
    one = target(seed=1)
    assert np.linalg.norm(dense(only(mixed(recipe, (1.0, -1.0), one, one).adapter))) > 0.1 * np.linalg.norm(dense(one))
    twice = combine([Weighted(Parent(adapter(one, replace(one, name="x"))))], recipe).adapter
    assert apart(dense(twice.target("w")), dense(twice.target("x"))) > 0.1


def test_elementwise_methods_keep_experts_apart_and_take_biases_along() -> None:
    """Each expert is a matrix of its own; a bias is a vector by the same rules."""
    parts = [
        Weighted(Parent(adapter(target(Kind.EXPERTS, seed=seed), target(Kind.BIAS, seed=seed, name="b"))), weight)
        for seed, weight in ((1, 1.0), (2, -0.5))
    ]
    made = combine(parts, ELEMENTS).adapter
    for name in ("w", "b"):
        wanted = []
        for part in parts:
            change = dense(part.parent.adapter.target(name))
            matrices = change if name == "w" else change[None]
            cut = [np.partition(np.abs(matrix).ravel(), matrix.size // 2)[matrix.size // 2] for matrix in matrices]
            kept = [np.where(np.abs(m) >= limit, m, 0) for m, limit in zip(matrices, cut, strict=True)]
            wanted.append(np.stack(kept) * part.weight)
        assert apart(np.reshape(dense(made.target(name)), wanted[0].shape), wanted[0] + wanted[1]) < 1e-6


def test_the_paper_trims_within_the_whole_adapter() -> None:
    """A small change loses everything beside a large one, and has no weights but one λ."""
    large, small = target(seed=1, scale=100.0, name="large"), target(seed=2, scale=0.01, name="small")
    recipe = replace(ELEMENTS, method=Method.TIES, convention=Convention.PAPER)
    made = combine([Weighted(Parent(adapter(large, small)), 2.0)], recipe).adapter
    assert np.abs(dense(made.target("small"))).max() == 0
    assert apart(dense(made.target("large")), 2 * dense(large)) < 1e-5
    peft = combine([Weighted(Parent(adapter(large, small)))], replace(recipe, convention=Convention.PEFT)).adapter
    assert np.abs(dense(peft.target("small"))).max() > 0
    with pytest.raises(UsageError, match="one weight for all"):
        mixed(recipe, (1.0, 0.5), target(), target(seed=1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"method": Method.SVD}, "svd needs a rank or an energy"),
        ({"method": Method.CAT, "truncation": Truncation(rank=2)}, "cat keeps every rank"),
        ({"method": Method.TIES, "truncation": Truncation(rank=2)}, "ties needs a density"),
        ({"density": 0.5}, "linear has no density"),
        ({"method": Method.DARE, "truncation": Truncation(rank=2), "density": 0.0}, "0 is no density"),
        ({"convention": Convention.PEFT}, "linear is the same in every convention"),
        ({"seed": 1}, "linear draws nothing"),
        ({"method": Method.DARE, "truncation": Truncation(rank=2), "density": 0.5, "seed": -1}, "-1 is no seed"),
        ({"dtype": "I8"}, "'I8' is no type of factors; there is F64, F32"),
    ],
)
def test_numbers_that_mean_nothing_for_a_method_are_refused(fields: dict[str, Any], said: str) -> None:
    """Nobody gets a default in silence."""
    with pytest.raises(UsageError, match=said):
        Recipe(**fields)


def test_a_combination_needs_adapters_and_numbers() -> None:
    """Nothing, or a weight that is none, is a usage error."""
    for parts in ([], [Weighted(Parent(adapter(target())), float("nan"))]):
        with pytest.raises(UsageError, match="one adapter at least"):
            combine(parts, Recipe())
