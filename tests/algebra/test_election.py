"""TIES and DARE element by element, against the numbers of the programs whose conventions they follow."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from algebra_adapters import adapter, dense
from peft.utils import merge_utils

from lora_registry.adapter import Kind, Target
from lora_registry.algebra.combine import Weighted, combine
from lora_registry.algebra.election import Convention, above, dropped, elected, threshold, trimmed
from lora_registry.algebra.lineage import Parent
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.algebra.truncation import Truncation
from lora_registry.errors import UsageError
from lora_registry.ops.arrays import from_array

VECTORS = np.array([[1, -2, 3, 0, 5, -6], [-1, 2, 3, 4, -5, -6], [2, 2, -1, 4, 1, 0]], np.float32)


def ties(weights: list[float], density: float, convention: Convention) -> list[float]:
    """The vectors above, trimmed and elected."""
    return elected([trimmed(vector, density) for vector in VECTORS], weights, convention).tolist()


def test_ties_as_peft_has_it_on_vectors_that_were_taken_from_peft() -> None:
    """Signs of the unweighted sums; divided by how many agree; a sum of zero elects plus."""
    assert ties([1, 1, 1], 0.5, Convention.PEFT) == [2, 2, 3, 4, 5, -6]
    assert ties([1, -1, 0.5], 1.0, Convention.PEFT) == [1, -0.5, 0, -1, 2.75, 0]


def test_magnitude_pruning_on_the_same_vectors() -> None:
    """The largest half of each, added up."""
    assert sum(trimmed(vector, 0.5) for vector in VECTORS).tolist() == [2, 2, 3, 8, 0, -12]


@pytest.mark.parametrize("method", [Method.CAT, Method.LINEAR, Method.SVD])
def test_task_arithmetic_on_the_same_vectors(method: Method) -> None:
    """What PEFT calls so is a sum: that of the adapters that make the vectors."""
    parts = [
        Weighted(
            Parent(
                adapter(
                    Target(
                        name="w",
                        kind=Kind.LINEAR,
                        layout=("out", "in"),
                        shape=(1, 6),
                        tensors={"A": from_array(vector[None]), "B": from_array(np.ones((1, 1), np.float32))},
                    )
                )
            )
        )
        for vector in VECTORS
    ]
    truncation = Truncation(rank=1) if method is Method.SVD else Truncation()
    [target] = combine(parts, Recipe(method=method, truncation=truncation)).adapter
    assert np.allclose(dense(target), [[2, 2, 5, 8, 1, -12]], rtol=1e-6)
    assert merge_utils.task_arithmetic([torch.from_numpy(v) for v in VECTORS], torch.ones(3)).tolist() == [
        2, 2, 5, 8, 1, -12,
    ]  # fmt: skip


def test_ties_as_mergekit_has_it_gives_other_numbers_for_other_weights() -> None:
    """Signs of the weighted sums; divided by the weights of those that agree, or by one where these add up to zero.

    Worked out by hand: the weighted vectors are [1, -2, 3, 0, 5, -6], [1, -2, -3, -4, 5, 6] and [1, 1, -.5, 2, .5, 0],
    their sums 3, -3, -.5, -2, 10.5 and 0.
    """
    by_hand = [3 / 0.5, -4 / 1, -3.5 / -0.5, -4 / -1, 10.5 / 0.5, 6 / -1]
    assert ties([1, -1, 0.5], 1.0, Convention.MERGEKIT) == by_hand
    assert ties([1, 1, 1], 0.5, Convention.MERGEKIT) == ties([1, 1, 1], 0.5, Convention.PEFT)


def test_ties_as_the_paper_has_it_elects_no_sign_where_the_sum_is_zero() -> None:
    """One λ times the mean of those that agree; PEFT gives an element with the sum zero to the positive ones."""
    vectors = [np.array([1.0, 2.0, -3.0], np.float32), np.array([-1.0, 4.0, -1.0], np.float32)]
    assert elected(vectors, [2.0, 2.0], Convention.PAPER).tolist() == [0, 6, -4]
    assert elected(vectors, [2.0, 2.0], Convention.PEFT).tolist() == [2, 6, -4]
    with pytest.raises(UsageError, match="one weight for all"):
        elected(vectors, [1.0, 2.0], Convention.PAPER)


@pytest.mark.filterwarnings("ignore:The density 1.0")
@pytest.mark.parametrize(("seed", "density"), list(product(range(5), (0.1, 0.5, 0.73, 1.0))))
def test_trimming_and_ties_are_those_of_peft_on_random_matrices(seed: int, density: float) -> None:
    """The very functions of PEFT 0.21, on matrices without equal magnitudes, with weights of both signs."""
    random = np.random.default_rng(seed)
    changes = [random.standard_normal((7, 9)).astype(np.float32) for _ in range(3)]
    weights = random.standard_normal(3).astype(np.float32)
    tensors = [torch.from_numpy(change) for change in changes]
    expected = merge_utils.ties(tensors, torch.from_numpy(weights), density).numpy()
    thinned = [trimmed(change, density) for change in changes]
    assert np.allclose(elected(thinned, weights.tolist(), Convention.PEFT), expected, rtol=1e-5, atol=1e-7)
    for kept, tensor in zip(thinned, tensors, strict=True):
        if density < 1:
            assert np.array_equal(kept, merge_utils.magnitude_based_pruning(tensor, density).numpy())
        assert np.count_nonzero(kept) == int(density * kept.size)


def test_equal_magnitudes_keep_the_first() -> None:
    """Exactly so many elements stay, whatever ties there are."""
    assert trimmed(np.array([1.0, -1.0, 1.0, -1.0]), 0.5).tolist() == [1, -1, 0, 0]


@pytest.mark.parametrize("convention", [Convention.PEFT, Convention.PAPER])
def test_dare_expects_what_it_drops(convention: Convention) -> None:
    """What stays is divided by the density: the mean over a thousand draws is the change."""
    change = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    draws = [dropped(change, 0.25, np.random.default_rng(seed), convention) for seed in range(1000)]
    assert all(set(np.unique(draw / change)) == {0, 4} for draw in draws)
    kept = np.mean([np.count_nonzero(draw) for draw in draws]) / change.size
    assert kept == pytest.approx(0.25, abs=0.01)
    assert np.linalg.norm(np.mean(draws, axis=0) - change) / np.linalg.norm(change) < 0.08


def test_dare_as_mergekit_has_it_keeps_the_sum_of_the_magnitudes() -> None:
    """``rescale_norm: l1``: exactly in every draw, not only on average."""
    change = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    draw = dropped(change, 0.25, np.random.default_rng(1), Convention.MERGEKIT)
    assert np.abs(draw).sum() == pytest.approx(np.abs(change).sum(), rel=1e-5)
    nothing = np.zeros((2, 2), np.float32)
    assert not dropped(nothing, 0.5, np.random.default_rng(1), Convention.MERGEKIT).any()


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999, 1.0])
def test_the_threshold_over_several_arrays_is_that_of_all_elements_sorted(density: float) -> None:
    """Two counts of sixteen bits find the magnitude that a sort of everything would find."""
    random = np.random.default_rng(0)
    arrays = [(random.standard_normal(size) * 10.0**power).astype(np.float32) for size, power in ((999, -3), (501, 2))]
    magnitudes = np.sort(np.abs(np.concatenate(arrays)))[::-1]
    keep = int(density * 1500)
    found = threshold(lambda: iter(arrays), density)
    assert found == magnitudes[keep - 1]
    assert sum(np.count_nonzero(above(array, found)) for array in arrays) == keep


def test_a_density_that_keeps_nothing_has_no_threshold() -> None:
    """Infinity, above which there is nothing."""
    assert threshold(lambda: iter([np.ones(3, np.float32)]), 0.1) == float("inf")
