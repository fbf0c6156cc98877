"""One adapter out of several: weighted sums, exact or truncated, and the elementwise methods.

For the sums everything follows from the factors; no matrix of the size of the base tensor is made. A target that
replaces values (full, tokens) has no weight: it is taken over where one adapter alone has it, rows of one table are
put beside each other where no two adapters have the same, and all else is refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lora_registry.adapter import Adapter, Json, Kind, Target
from lora_registry.algebra.combinable import aligned, check_linear, replaces
from lora_registry.algebra.core import LowRank, norm, one_thread, stacked
from lora_registry.algebra.dense import approximate
from lora_registry.algebra.lineage import Parent, common_fingerprint, descendant
from lora_registry.algebra.mixture import Mixture
from lora_registry.algebra.orthogonalize import orthogonalized
from lora_registry.algebra.recipe import ELEMENTWISE, Method, Recipe
from lora_registry.algebra.replacements import joined
from lora_registry.algebra.resize import truncated
from lora_registry.algebra.retention import Retention, bias_of, retained
from lora_registry.algebra.slices import refilled, slices
from lora_registry.errors import UnsupportedError, UsageError
from lora_registry.ops.agreement import with_names_of
from lora_registry.ops.arrays import to_array
from lora_registry.ops.prefix import Prefix
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
        retentions: one for each target that is a change.
        notes: what was left out or taken over, a line each.
    """

    adapter: Adapter
    retentions: tuple[Retention, ...]
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
    parameters: dict[str, Json] = {**recipe.to_json(), "weights": [part.weight for part in parts]}
    parents = [part.parent for part in parts]
    document, notes = descendant(parents, (), "combine", parameters, force=recipe.force)
    adapters, renamed = _under_one_name(parents)
    work = _Work(recipe, adapters)
    groups: dict[str, list[_Share]] = defaultdict(list)
    for number, (part, adapter) in enumerate(zip(parts, adapters, strict=True)):
        for target in adapter:
            groups[target.name].append(_Share(number, part.weight, target))
    counted = Counted(progress, len(groups))
    targets = []
    with one_thread():
        for _, shares in sorted(groups.items()):
            targets.append(work.combined(shares))
            counted.advance(1)
    made = replace(document, targets=tuple(targets))
    return Combination(made, tuple(work.retentions), (*notes, *renamed, *work.notes))


def _under_one_name(parents: Sequence[Parent]) -> tuple[list[Adapter], list[str]]:
    """The adapters under the names of the first, where names differ by one prefix for all targets (P-013)."""
    first, notes = parents[0].adapter, []
    adapters = [first]
    for number, parent in enumerate(parents[1:], start=2):
        adapter, prefix = with_names_of(parent.adapter, first)
        adapters.append(adapter)
        if prefix != Prefix():
            notes.append(f"adapter {number}: its names are taken under the prefix {prefix}")
    return adapters, notes


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


@dataclass(frozen=True, slots=True)
class _Share:
    """What one adapter, the ``number``-th, has to do with a base tensor."""

    number: int
    weight: float
    target: Target

    @property
    def multiplier(self) -> float:
        """What B·A is multiplied by."""
        return self.weight * self.target.scale


class _Work:
    """Combines the targets of one base tensor after the other, and remembers what there is to say."""

    def __init__(self, recipe: Recipe, adapters: Sequence[Adapter]) -> None:
        self.retentions: list[Retention] = []
        self.notes: list[str] = []
        self._recipe = recipe
        self._mixture: Mixture | None = None
        if recipe.method in ELEMENTWISE:
            adding = [[target for target in adapter if not replaces(target)] for adapter in adapters]
            self._mixture = Mixture(recipe, adding)

    def combined(self, shares: Sequence[_Share]) -> Target:
        """The one target of a base tensor."""
        if any(replaces(share.target) for share in shares):
            return self._taken_over(shares)
        plain = aligned([share.target for share in shares])
        shares = [replace(share, target=target) for share, target in zip(shares, plain, strict=True)]
        like = replace(
            plain[0],
            segments=next((target.segments for target in plain if target.segments is not None), None),
            fingerprint=common_fingerprint(plain, self._recipe.force, self.notes.append),
            extra=self._common_extra(plain),
        )
        if like.kind is Kind.BIAS:
            return self._bias(like, shares)
        if self._mixture is not None:
            return self._mixed(self._mixture, like, shares)
        if self._recipe.method is Method.CAT:
            return self._beside(like, shares)
        return self._summed(like, shares)

    def _taken_over(self, shares: Sequence[_Share]) -> Target:
        target = joined([share.target for share in shares])
        for share in shares:
            if share.weight <= 0:
                raise _no_weight(target)
            if share.weight != 1:
                self.notes.append(
                    f"{target.name}: replaces values, to which the weight {share.weight:g} does not apply; kept"
                )
        if len(shares) == 1:
            return target
        plain = [share.target for share in shares]
        return replace(
            target,
            fingerprint=common_fingerprint(plain, self._recipe.force, self.notes.append),
            extra=self._common_extra(plain),
        )

    def _common_extra(self, targets: Sequence[Target]) -> Mapping[str, Json]:
        extra = targets[0].extra
        if any(target.extra != extra for target in targets):
            self.notes.append(f"{targets[0].name}: fields that this version does not know are different; left out")
            return {}
        return extra

    def _beside(self, like: Target, shares: Sequence[_Share]) -> Target:
        """Factors as they are: the largest of the multipliers is the scale, and B takes what the others lack of it."""
        scale = max((share.multiplier for share in shares), key=abs) or 1.0
        pieces = [slices(share.target, share.multiplier / scale) for share in shares]
        kept = [stacked(together) for together in zip(*pieces, strict=True)]
        made = refilled(like, kept, self._recipe.dtype, scale=scale)
        exact = [matrix * scale for matrix in kept]
        self.retentions.append(retained(made, exact, norm(exact), 0.0))
        return made

    def _summed(self, like: Target, shares: Sequence[_Share]) -> Target:
        pieces = [slices(share.target, share.multiplier) for share in shares]
        if self._recipe.method is Method.ORTHOGONAL:
            pieces = [
                [orthogonalized(matrix, [before[i] for before in pieces[:place]]) for i, matrix in enumerate(own)]
                for place, own in enumerate(pieces)
            ]
        sums = [stacked(together) for together in zip(*pieces, strict=True)]
        # What is left of changes that cancel is no smaller than the rounding of the largest of them.
        noise = float(np.finfo(np.float64).eps) * max(map(_longest, sums)) * max(map(norm, pieces))
        kept, whole, left_out = truncated(sums, self._recipe.truncation, noise=noise)
        return self._written(like, kept, whole, left_out)

    def _mixed(self, mixture: Mixture, like: Target, shares: Sequence[_Share]) -> Target:
        found = [
            approximate(whole, self._recipe.truncation)
            for whole in mixture.mixed(like.name, [share.target for share in shares], *_numbers(shares))
        ]
        rank = max(each.matrix.rank for each in found)
        kept = [_padded(each.matrix, rank) for each in found]
        whole, left_out = np.linalg.norm([(each.norm, each.error) for each in found], axis=0).tolist()
        return self._written(like, kept, whole, left_out)

    def _written(self, like: Target, kept: Sequence[LowRank], whole: float, left_out: float) -> Target:
        made = refilled(like, kept, self._recipe.dtype)
        self.retentions.append(retained(made, kept, whole, left_out))
        return made

    def _bias(self, like: Target, shares: Sequence[_Share]) -> Target:
        if self._mixture is None:
            deltas = [to_array(share.target.tensors["delta"]).astype(np.float64) for share in shares]
            with np.errstate(over="ignore", invalid="ignore"):
                exact = np.sum([delta * share.multiplier for delta, share in zip(deltas, shares, strict=True)], axis=0)
        else:
            [mixed] = self._mixture.mixed(like.name, [share.target for share in shares], *_numbers(shares))
            exact = mixed.astype(np.float64)
        target, retention = bias_of(like, exact, self._recipe.dtype)
        self.retentions.append(retention)
        return target


def _numbers(shares: Sequence[_Share]) -> tuple[list[int], list[float]]:
    return [share.number for share in shares], [share.weight for share in shares]


def _longest(matrix: LowRank) -> int:
    return max(len(matrix.left), len(matrix.right.T))


def _padded(matrix: LowRank, rank: int) -> LowRank:
    """The same matrix with zeros up to ``rank``: the experts of a target have one rank."""
    missing = rank - matrix.rank
    return LowRank(np.pad(matrix.left, ((0, 0), (0, missing))), np.pad(matrix.right, ((0, missing), (0, 0))))
