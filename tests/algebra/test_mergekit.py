"""The mergekit convention against mergekit's own numbers, which ``golden/make_mergekit.py`` took from 0.1.5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from algebra_adapters import Array, adapter, apart, dense

from lora_registry.adapter import Kind, Target
from lora_registry.algebra.combine import Weighted, combine
from lora_registry.algebra.dense import approximate
from lora_registry.algebra.election import Convention, dropped, elected, trimmed
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.algebra.truncation import Truncation
from lora_registry.ops.arrays import from_array

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "mergekit.json").read_bytes())
INPUTS = {name: [np.array(each, np.float32) for each in inputs] for name, inputs in GOLDEN["inputs"].items()}


def named(cases: list[dict[str, Any]], *fields: str) -> Any:
    """A parameter for each case, called by its fields."""
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=", ".join(str(case[field]) for field in fields)) for case in cases]
    )


class Drawn(np.random.Generator):
    """A generator that gives a mask that was drawn elsewhere: 0 where an element stays, 1 where it does not."""

    def __init__(self, mask: Any) -> None:
        super().__init__(np.random.PCG64(0))
        self._mask = np.array(mask, np.float32)

    def random(self, size: Any = None, dtype: Any = None, out: Any = None) -> Any:
        assert tuple(size) == self._mask.shape
        return 1 - self._mask


def near(found: Array, wanted: Any) -> bool:
    """Within the rounding of a few sums in float32."""
    return bool(np.allclose(found, np.array(wanted), rtol=2e-6, atol=2e-6))


TIES = [case for case in GOLDEN["sums"] if case["method"] == "ties"]
ARITHMETIC = [case for case in GOLDEN["sums"] if case["method"] == "task_arithmetic"]


@named(TIES, "inputs", "weights", "density")
def test_ties(case: dict[str, Any]) -> None:
    """Trimmed, weighed, elected by the weighted sums, divided by the weights that agree; a density that keeps nothing
    keeps one element."""
    thinned = [trimmed(change, case["density"], Convention.MERGEKIT) for change in INPUTS[case["inputs"]]]
    assert near(elected(thinned, case["weights"], Convention.MERGEKIT), case["out"])


def test_ties_of_peft_gives_other_numbers() -> None:
    """Where weights differ, or a density keeps nothing; elsewhere the two conventions are one."""
    for case in TIES:
        thinned = [trimmed(change, case["density"]) for change in INPUTS[case["inputs"]]]
        alike = near(elected(thinned, case["weights"], Convention.PEFT), case["out"])
        assert alike == (case["weights"] == [1.0, 1.0, 1.0] and case["density"] > 0.1)


@named(ARITHMETIC, "inputs", "weights", "normalize")
def test_task_arithmetic_is_a_sum_and_normalized_one_with_weights_that_add_up_to_one(case: dict[str, Any]) -> None:
    """loreg takes weights as they are: ``normalize: true`` divides them by their sum beforehand."""
    weights = np.array(case["weights"])
    if case["normalize"]:
        weights = weights / weights.sum()
    parts = [
        Weighted(Parent(adapter(bias(change))), float(weight))
        for change, weight in zip(INPUTS[case["inputs"]], weights, strict=True)
    ]
    for method in (Method.CAT, Method.LINEAR):
        [target] = combine(parts, Recipe(method=method)).adapter
        assert near(dense(target).reshape(-1), np.array(case["out"]).reshape(-1))


def bias(change: Array) -> Target:
    """The change as that of a vector, which a combination adds up without factoring it."""
    tensors = {"delta": from_array(change.reshape(-1))}
    return Target(name="w", kind=Kind.BIAS, layout=("out",), shape=(change.size,), tensors=tensors)


@named([case for case in GOLDEN["thinned"] if case["method"] == "magnitude" and not case["norm"]], "density")
def test_magnitude(case: dict[str, Any]) -> None:
    """The largest elements as they are."""
    found = trimmed(INPUTS["matrices"][0], case["density"], Convention.MERGEKIT)
    assert np.array_equal(found, np.array(case["out"], np.float32))


@named([case for case in GOLDEN["thinned"] if case["method"] == "random"], "density", "norm")
def test_elements_that_are_dropped_at_random_are_made_up_for_by_the_norm_l1(case: dict[str, Any]) -> None:
    """With the mask that mergekit drew. Of the norms that it has l1 is its default, and the one that loreg has."""
    found = dropped(INPUTS["matrices"][0], case["density"], Drawn(np.array(case["out"]) != 0), Convention.MERGEKIT)
    assert near(found, case["out"]) == (case["norm"] == "l1" or case["density"] == 1)


def test_what_is_smaller_than_mergekit_can_scale_stays() -> None:
    """Sums of magnitudes under 1e-7."""
    change = np.full((2, 2), 1e-9, np.float32)
    kept = dropped(change, 0.5, Drawn([[1, 0], [0, 1]]), Convention.MERGEKIT)
    assert np.array_equal(kept, change * np.eye(2, dtype=np.float32))


@named([case for case in GOLDEN["dare"] if case["rescale"]], "weights")
def test_dare_linear(case: dict[str, Any]) -> None:
    """Thinned with the masks that mergekit drew, weighed and added up; not normalized."""
    total = sum(
        weight * dropped(change, 0.5, Drawn(mask), Convention.MERGEKIT)
        for change, weight, mask in zip(INPUTS["matrices"], case["weights"], case["masks"], strict=True)
    )
    assert near(np.asarray(total), case["out"])


def test_on_average_dare_is_a_little_less_than_the_sum() -> None:
    """The sum of magnitudes is that of the change in each draw. Large elements lose by it and small ones gain: over
    many draws the mean is the change to a few percent, and not exactly, as with PEFT's division by the density."""
    change = INPUTS["matrices"][0]
    draws = [dropped(change, 0.5, np.random.default_rng(seed), Convention.MERGEKIT) for seed in range(4000)]
    mean = np.mean(draws, axis=0)
    assert 0.005 < np.linalg.norm(mean - change) / np.linalg.norm(change) < 0.06
    largest = np.unravel_index(np.argmax(np.abs(change)), change.shape)
    assert abs(mean[largest]) < 0.99 * abs(change[largest])


EXTRACTED = GOLDEN["extracted"][0]


@named(EXTRACTED["factors"], "rank", "distribute_scale")
def test_an_extracted_adapter_is_the_best_of_its_rank(case: dict[str, Any]) -> None:
    """The same product, whichever of its factors carry the singular values; mergekit decomposes in float32."""
    found = approximate(np.array(EXTRACTED["difference"]), Truncation(rank=case["rank"])).matrix
    theirs = np.array(case["B"]) @ np.array(case["A"])
    assert found.rank == case["rank"]
    assert apart(found.left @ found.right, theirs) < 1e-5


def test_the_convention_reaches_a_combination() -> None:
    """``loreg combine --method ties --convention mergekit`` on factors whose changes are the matrices."""
    case = next(each for each in TIES if each["inputs"] == "matrices" and each["density"] == 0.3)
    parts = [
        Weighted(Parent(adapter(linear(change))), weight)
        for change, weight in zip(INPUTS["matrices"], case["weights"], strict=True)
    ]
    recipe = Recipe(
        method=Method.TIES, density=0.3, convention=Convention.MERGEKIT, truncation=Truncation(rank=5), dtype="F64"
    )
    [target] = combine(parts, recipe).adapter
    assert near(dense(target), case["out"])


def linear(change: Array) -> Target:
    """A linear target that makes ``change``: B is one, so that every element is exact."""
    rows = len(change)
    tensors = {"A": from_array(change), "B": from_array(np.eye(rows, dtype=np.float32))}
    return Target(name="w", kind=Kind.LINEAR, layout=("out", "in"), shape=change.shape, tensors=tensors)
