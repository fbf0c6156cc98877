"""One adapter out of several: weighted sums, exact or truncated, and the elementwise methods.

For the sums everything follows from the factors; no matrix of the size of the base tensor is made. A target that
replaces values (full, tokens) has no weight: it is taken over where one adapter alone has it, and refused elsewhere.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np

from lora_registry.adapter import Adapter, Json, Kind, Target
from lora_registry.errors import InvalidInputError, UnsupportedError, UsageError
from lora_registry.ops.arrays import from_array, round_to, to_array
from lora_registry.ops.certificate import Certificate, certified
from lora_registry.ops.combinable import aligned, check_linear, replaces
from lora_registry.ops.core import LowRank, norm, one_thread, stacked
from lora_registry.ops.dense import approximate
from lora_registry.ops.lineage import Parent, common_fingerprint, descendant
from lora_registry.ops.mixture import Mixture, dense_changes
from lora_registry.ops.orthogonalize import orthogonalized
from lora_registry.ops.recipe import ELEMENTWISE, Method, Recipe
from lora_registry.ops.resize import truncated
from lora_registry.ops.slices import refilled, slices
from lora_registry.progress import Counted, Progress


@dataclass(frozen=True, slots=True)
class Weighted:
    """An adapter and its weight in a combination; a negative one takes its change away."""

    parent: Parent
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Combination:
    """What was made.

    Attributes:
        adapter: the result, with its lineage.
        certificates: one for each target that is a change.
        notes: what was left out or taken over, a line each.
    """

    adapter: Adapter
    certificates: tuple[Certificate, ...]
    notes: tuple[str, ...]


def combine(parts: Sequence[Weighted], recipe: Recipe, *, progress: Progress | None = None) -> Combination:
    """Combine adapters of one base.

    Args:
        parts: one at least. A base tensor that only some of them change is changed by those.
        recipe: how.
        progress: called with the targets that are done, and with all.

    Raises:
        UsageError: no adapter, or a weight that is no finite number.
        UnsupportedError: a gate, a magnitude (DoRA), a change without two factors where dense is not asked for, or
            values that are replaced where others act too.
        InvalidInputError: different bases or shapes, or a change that is not finite, or beyond the dtype.
    """
    if not parts or not all(np.isfinite(part.weight) for part in parts):
        raise UsageError("a combination is made of one adapter at least, each with a finite weight")
    check_linear((part.parent.adapter for part in parts), dense=recipe.dense)
    groups: dict[str, list[tuple[int, Target]]] = defaultdict(list)
    for number, part in enumerate(parts):
        for target in part.parent.adapter:
            groups[target.name].append((number, target))
    work = _Work(parts, recipe)
    counted = Counted(progress, len(groups))
    targets = []
    # Whole matrices have work for all cores, factors have not.
    with nullcontext() if recipe.method in ELEMENTWISE or recipe.dense else one_thread():
        for _, group in sorted(groups.items()):
            targets.append(work.combined(group))
            counted.advance(1)
    parameters: dict[str, Json] = {**recipe.to_json(), "weights": [part.weight for part in parts]}
    parents = [part.parent for part in parts]
    adapter, notes = descendant(parents, targets, "combine", parameters, force=recipe.force)
    return Combination(adapter, tuple(work.certificates), (*notes, *work.notes))


def subtract(one: Parent, other: Parent, recipe: Recipe | None = None) -> Combination:
    """The adapter that makes the change of ``one`` without that of ``other``: a sum with the weights 1 and -1."""
    return combine([Weighted(one), Weighted(other, -1.0)], recipe or Recipe())


def negate(parent: Parent) -> Adapter:
    """The adapter that makes the opposite change: every scale with the other sign, every tensor as it is.

    Raises:
        UnsupportedError: a magnitude (DoRA) or a value, which have no opposite; or a gate.
    """
    check_linear([parent.adapter], dense=True)
    for target in parent.adapter:
        if replaces(target):
            raise _no_weight(target)
    targets = [replace(target, scale=0.0 - target.scale) for target in parent.adapter]
    return descendant([parent], targets, "negate", {})[0]


def _no_weight(target: Target) -> UnsupportedError:
    return UnsupportedError(
        f"{target.name}: a {target.kind} target replaces values: it adds no change that could be weighed"
        if target.kind in (Kind.FULL, Kind.TOKENS)
        else f"{target.name}: brings a value that its change is made on, which cannot be weighed"
    )


class _Work:
    """Combines the targets of one base tensor after the other, and remembers what there is to say."""

    def __init__(self, parts: Sequence[Weighted], recipe: Recipe) -> None:
        self.certificates: list[Certificate] = []
        self.notes: list[str] = []
        self._parts, self._recipe = parts, recipe
        self._weights = [part.weight for part in parts]
        self._mixture: Mixture | None = None
        if recipe.method in ELEMENTWISE:
            adding = [[target for target in part.parent.adapter if not replaces(target)] for part in parts]
            self._mixture = Mixture(recipe, adding)

    def combined(self, group: Sequence[tuple[int, Target]]) -> Target:
        """The one target of a base tensor.

        Args:
            group: the numbers of the adapters that change it, and how each does.
        """
        numbers, targets = [number for number, _ in group], [target for _, target in group]
        if any(map(replaces, targets)):
            return self._taken_over(numbers, targets)
        plain = aligned(targets)
        like = replace(
            plain[0],
            segments=next((target.segments for target in plain if target.segments is not None), None),
            fingerprint=common_fingerprint(plain, self._recipe.force, self.notes.append),
            extra=self._common_extra(plain),
        )
        if like.kind is Kind.BIAS:
            return self._bias(like, plain, numbers)
        if self._mixture is not None:
            return self._mixed(self._mixture, like, plain, numbers)
        if self._recipe.method is Method.CAT:
            return self._beside(like, plain, numbers)
        return self._summed(like, plain, numbers)

    def _taken_over(self, numbers: Sequence[int], targets: Sequence[Target]) -> Target:
        [target, *others], weight = targets, self._weights[numbers[0]]
        if others:
            raise UnsupportedError(f"{target.name}: one adapter replaces its values, and another one changes them too")
        if weight <= 0:
            raise _no_weight(target)
        if weight != 1:
            self.notes.append(f"{target.name}: replaces values, to which the weight {weight:g} does not apply; kept")
        return target

    def _common_extra(self, targets: Sequence[Target]) -> dict[str, Json]:
        extra = dict(targets[0].extra)
        if any(target.extra != extra for target in targets):
            self.notes.append(f"{targets[0].name}: fields that this version does not know are different; left out")
            return {}
        return extra

    def _beside(self, like: Target, targets: Sequence[Target], numbers: Sequence[int]) -> Target:
        """Factors as they are: the largest of the multipliers is the scale, and B takes what the others lack of it."""
        multipliers = [self._weights[n] * target.scale for n, target in zip(numbers, targets, strict=True)]
        scale = max(multipliers, key=abs) or 1.0
        pieces = [slices(target, m / scale) for target, m in zip(targets, multipliers, strict=True)]
        kept = [stacked(together) for together in zip(*pieces, strict=True)]
        made = refilled(like, kept, self._recipe.dtype, scale=scale)
        exact = [matrix * scale for matrix in kept]
        self.certificates.append(certified(made, exact, norm(exact), 0.0))
        return made

    def _summed(self, like: Target, targets: Sequence[Target], numbers: Sequence[int]) -> Target:
        pieces = [slices(target, self._weights[n] * target.scale) for n, target in zip(numbers, targets, strict=True)]
        if self._recipe.method is Method.ORTHOGONAL:
            pieces = [
                [orthogonalized(matrix, [before[i] for before in pieces[:place]]) for i, matrix in enumerate(own)]
                for place, own in enumerate(pieces)
            ]
        sums = [stacked(together) for together in zip(*pieces, strict=True)]
        largest = max(norm(own) for own in pieces)
        noise = float(np.finfo(np.float64).eps) * max(map(_longest, sums)) * largest
        kept, whole, left_out = truncated(sums, self._recipe.truncation, noise=noise)
        return self._written(like, kept, whole, left_out)

    def _mixed(self, mixture: Mixture, like: Target, targets: Sequence[Target], numbers: Sequence[int]) -> Target:
        weights = [self._weights[n] for n in numbers]
        found = []
        for index, changes in enumerate(zip(*map(dense_changes, targets), strict=True)):
            whole = mixture.mix(f"{like.name}/{index}", changes, numbers, weights)
            found.append(approximate(whole, self._recipe.truncation))
        rank = max(each.matrix.rank for each in found)
        kept = [_padded(each.matrix, rank) for each in found]
        sizes, errors = ([each.norm for each in found], [each.error for each in found])
        return self._written(like, kept, float(np.linalg.norm(sizes)), float(np.linalg.norm(errors)))

    def _written(self, like: Target, kept: Sequence[LowRank], whole: float, left_out: float) -> Target:
        made = refilled(like, kept, self._recipe.dtype)
        self.certificates.append(certified(made, kept, whole, left_out))
        return made

    def _bias(self, like: Target, targets: Sequence[Target], numbers: Sequence[int]) -> Target:
        weights = [self._weights[n] for n in numbers]
        if self._mixture is None:
            multiplied = [
                to_array(target.tensors["delta"]).astype(np.float64) * (target.scale * weight)
                for target, weight in zip(targets, weights, strict=True)
            ]
            exact = np.sum(multiplied, axis=0)
        else:
            changes = [dense_changes(target)[0] for target in targets]
            exact = self._mixture.mix(f"{like.name}/0", changes, numbers, weights).astype(np.float64)
        rounded = round_to(exact, self._recipe.dtype)
        if not np.isfinite(rounded.astype(np.float64)).all():
            raise InvalidInputError(f"{like.name}: its change is not finite, or beyond the range of {rounded.dtype}")
        size = float(np.linalg.norm(exact))
        apart = float(np.linalg.norm(rounded.astype(np.float64) - exact))
        self.certificates.append(Certificate(like.name, None, size, rounding=apart / (size or 1.0)))
        return replace(like, tensors={"delta": from_array(rounded)}, scale=1.0, digests={})


def _longest(matrix: LowRank) -> int:
    return max(len(matrix.left), len(matrix.right.T))


def _padded(matrix: LowRank, rank: int) -> LowRank:
    """The same matrix with zeros up to ``rank``: the experts of a target have one rank."""
    missing = rank - matrix.rank
    return LowRank(np.pad(matrix.left, ((0, 0), (0, missing))), np.pad(matrix.right, ((0, missing), (0, 0))))
