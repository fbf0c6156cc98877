"""The elementwise methods on the changes of one tensor: ties, dare and magnitude."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.algebra.election import Convention, dropped, threshold, ties, trimmed
from lora_registry.algebra.lowering import lowered
from lora_registry.algebra.recipe import Method, Recipe
from lora_registry.algebra.slices import slices
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array, to_array


class Mixture:
    """Mixes whole matrices by a recipe.

    Args:
        recipe: of an elementwise method.
        adapters: for each adapter the targets that add a change; read here only where the paper's TIES trims within
            the whole adapter.
    """

    def __init__(self, recipe: Recipe, adapters: Sequence[Sequence[Target]]) -> None:
        self._recipe = recipe
        assert recipe.density is not None  # a recipe of an elementwise method has one
        self._density = recipe.density
        self._thresholds: list[float] | None = None
        if recipe.method is Method.TIES and recipe.rules is Convention.PAPER:
            self._thresholds = [threshold(partial(_changes, targets), self._density) for targets in adapters]

    def mixed(
        self, name: str, targets: Sequence[Target], numbers: Sequence[int], weights: Sequence[float]
    ) -> Iterator[Array]:
        """The combination of the changes of one tensor: a float32 matrix for each expert or group.

        Args:
            name: of the tensor, which is part of the seed: the same for every order of work.
            targets: one for each adapter that changes it.
            numbers: which adapters these are.
            weights: theirs.
        """
        for index, changes in enumerate(zip(*map(dense_changes, targets), strict=True)):
            yield self._mix(f"{name}/{index}", changes, numbers, weights)

    def _mix(self, name: str, changes: Sequence[Array], numbers: Sequence[int], weights: Sequence[float]) -> Array:
        if self._recipe.method is Method.TIES:
            least = None if self._thresholds is None else [self._thresholds[number] for number in numbers]
            return ties(changes, self._density, weights, self._recipe.rules, least)
        thinned = [self._thinned(change, name, number) for change, number in zip(changes, numbers, strict=True)]
        total = np.zeros_like(changes[0])
        for change, weight in zip(thinned, weights, strict=True):
            total += np.float32(weight) * change
        return total

    def _thinned(self, change: Array, name: str, number: int) -> Array:
        if self._recipe.method is Method.DARE:
            return dropped(change, self._density, self._random(name, number), self._recipe.rules)
        return trimmed(change, self._density, self._recipe.rules)

    def _random(self, name: str, number: int) -> np.random.Generator:
        """PCG64 seeded with the seed, the number of the adapter, and the first eight bytes of sha256 of the name."""
        place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        return np.random.Generator(np.random.PCG64([self._recipe.seed or 0, number, place]))


def dense_changes(target: Target) -> list[Array]:
    """The change of a low-rank or bias target, a float32 matrix for each expert or group.

    Raises:
        InvalidInputError: the change is not finite, or beyond the range of float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what goes wrong shows in the result, which is checked
        if target.kind is Kind.BIAS:
            changes = [(to_array(target.tensors["delta"]).astype(np.float64) * target.scale).astype(np.float32)]
        else:
            changes = [matrix.left.astype(np.float32) @ matrix.right.astype(np.float32) for matrix in slices(target)]
    if not all(np.isfinite(change).all() for change in changes):
        raise InvalidInputError(f"{target.name}: its change is not finite, or beyond the range of float32")
    return changes


def _changes(targets: Sequence[Target]) -> Iterator[Array]:
    for target in targets:
        yield from dense_changes(lowered(target))
