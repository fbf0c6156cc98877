"""How alike two adapters are, and how they get into each other's way, target by target.

Cosine and overlap follow from the factors. Conflicts of signs are a matter of single elements, so for these the
changes are multiplied out, a block of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from lora_registry.adapter import LOW_RANK, Adapter, Kind, Target
from lora_registry.algebra.combinable import aligned, replaces
from lora_registry.algebra.core import LowRank, inner, norm, one_thread
from lora_registry.algebra.lowering import DENSE
from lora_registry.algebra.orthogonalize import spaces
from lora_registry.algebra.slices import slices
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import to_array
from lora_registry.progress import Counted, Progress
from lora_registry.text import plural

_BLOCK = 1 << 16  # elements multiplied out at a time: three such blocks stay in a core's cache


@dataclass(frozen=True, slots=True)
class Similarity:
    """Two changes X and Y of one base tensor.

    Attributes:
        target: name of the base tensor.
        norms: ‖X‖ and ‖Y‖, Frobenius.
        inner: ⟨X, Y⟩, the sum of the products of their elements.
        outputs: overlap of the outputs that they act on, ‖UᵀV‖² / min(rank) with orthonormal bases U and V (Hu et
            al. 2021, arXiv 2106.09685, section 7.2): 1 where one space lies in the other, 0 where they are orthogonal.
        inputs: the same of the inputs that they read.
        conflict: the share of all elements in which the signs of X and Y are opposite.
        cancelled: 1 - Σ|x + y| / Σ(|x| + |y|), the share of both that is gone in their sum.
    """

    target: str
    norms: tuple[float, float]
    inner: float
    outputs: float
    inputs: float
    conflict: float
    cancelled: float

    @property
    def cosine(self) -> float:
        """⟨X, Y⟩ / (‖X‖·‖Y‖); 0 where one of them is zero."""
        return cosine(self.inner, *self.norms)

    def to_json(self) -> dict[str, str | float | list[float]]:
        """The fields by name, and the cosine."""
        return {
            "target": self.target,
            "norms": list(self.norms),
            "cosine": self.cosine,
            "outputs": self.outputs,
            "inputs": self.inputs,
            "conflict": self.conflict,
            "cancelled": self.cancelled,
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two adapters side by side.

    Attributes:
        targets: those that both change.
        only: names of the base tensors that only the first changes, and that only the second does.
        notes: what was not compared, a line each.
    """

    targets: tuple[Similarity, ...]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    notes: tuple[str, ...]

    @property
    def cosine(self) -> float:
        """Of all changes that both make, as one vector."""
        sizes = (sqrt(sum(one.norms[side] ** 2 for one in self.targets)) for side in (0, 1))
        return cosine(sum(one.inner for one in self.targets), *sizes)


def cosine(product: float, one: float, other: float) -> float:
    """The cosine from an inner product and two norms, within ±1 whatever was rounded; 0 where a norm is zero."""
    return min(1.0, max(-1.0, product / (one * other))) if one and other else 0.0


def compare(one: Adapter, other: Adapter, *, dense: bool = False, progress: Progress | None = None) -> Comparison:
    """Compare the changes of two adapters.

    Args:
        one: an adapter.
        other: another, with the same names for the same base tensors.
        dense: multiply out LoHa, LoKr and sparse changes, instead of saying that they are not compared.
        progress: called with the targets that are done, and with all.

    Raises:
        InvalidInputError: the targets of one name differ in kind or shape, or a change is not finite.
    """
    firsts, seconds = ({target.name: target for target in adapter} for adapter in (one, other))
    shared = sorted(firsts.keys() & seconds.keys())
    counted = Counted(progress, len(shared))
    found, notes = [], list(_different_bases(one, other))
    with one_thread():
        for name in shared:
            pair = (firsts[name], seconds[name])
            if reason := _incomparable(pair, dense):
                notes.append(f"{name}: not compared: {reason}")
            else:
                found.append(_similarity(*aligned(pair)))
            if any("magnitude" in target.tensors for target in pair):
                notes.append(f"{name}: compared without its magnitude (DoRA)")
            counted.advance(1)
    only = (tuple(sorted(firsts.keys() - seconds.keys())), tuple(sorted(seconds.keys() - firsts.keys())))
    return Comparison(tuple(found), only, tuple(notes))


def _different_bases(one: Adapter, other: Adapter) -> Iterator[str]:
    """What says that the two were made for different bases: cosines mean little then."""
    names = (one.base.name, other.base.name)
    if None not in names and names[0] != names[1]:
        yield f"made for different bases: {names[0]} and {names[1]}"
    stated = {target.name: target.fingerprint for target in one if target.fingerprint is not None}
    unlike = sum(
        target.fingerprint is not None and stated.get(target.name, target.fingerprint) != target.fingerprint
        for target in other
    )
    if unlike:
        yield f"{plural(unlike, 'target')}: made for base tensors of other values"


def _incomparable(pair: Sequence[Target], dense: bool) -> str | None:
    for target in pair:
        if replaces(target):
            return f"a {target.kind} target with a value, which is no change"
        if target.kind in DENSE and not dense:
            return f"a {target.kind} change has no two factors; ask for dense, which multiplies it out"
    return None


def _similarity(one: Target, other: Target) -> Similarity:
    xs, ys = _matrices(one), _matrices(other)
    pairs = list(zip(xs, ys, strict=True))
    outputs, inputs = _overlap(pairs)
    conflict, cancelled = _conflict(pairs)
    product = sum(inner(x, y) for x, y in pairs)
    return Similarity(one.name, (norm(xs), norm(ys)), product, outputs, inputs, conflict, cancelled)


def _matrices(target: Target) -> list[LowRank]:
    if target.kind in LOW_RANK:
        return slices(target)
    assert target.kind is Kind.BIAS, target.kind
    with np.errstate(over="ignore", invalid="ignore"):  # what goes wrong shows in the result, which is checked
        delta = to_array(target.tensors["delta"]).astype(np.float64) * target.scale
    if not np.isfinite(delta).all():
        raise InvalidInputError(f"{target.name}: its change is not finite; the adapter is broken")
    return [LowRank(delta[:, None], np.ones((1, 1)))]


def _overlap(pairs: Sequence[tuple[LowRank, LowRank]]) -> tuple[float, float]:
    """The overlaps of outputs and of inputs; those of several matrices are averaged by their ranks."""
    shared, possible = np.zeros(2), 0
    for x, y in pairs:
        (x_out, x_in), (y_out, y_in) = spaces(x), spaces(y)
        shared += [np.sum((x_out.T @ y_out) ** 2), np.sum((x_in.T @ y_in) ** 2)]
        possible += min(x_out.shape[1], y_out.shape[1])
    outputs, inputs = shared / (possible or 1)
    return min(1.0, float(outputs)), min(1.0, float(inputs))


def _conflict(pairs: Sequence[tuple[LowRank, LowRank]]) -> tuple[float, float]:
    """The share of elements with opposite signs, and that of both changes that is gone in their sum."""
    opposite = elements = 0
    apart = together = 0.0
    for x, y in pairs:
        width = x.right.shape[1]
        step = max(1, _BLOCK // width)
        blocks = np.empty((3, step, width))
        for start in range(0, len(x.left), step):
            a, b, scratch = blocks[:, : len(x.left) - start]
            for each, out in ((x, a), (y, b)):
                np.matmul(each.left[start : start + step], each.right, out=out)
            opposite += int(np.count_nonzero(np.multiply(a, b, out=scratch) < 0))
            together += float(np.abs(np.add(a, b, out=scratch), out=scratch).sum())
            apart += sum(float(np.abs(out, out=scratch).sum()) for out in (a, b))
            elements += a.size
    return opposite / elements, max(0.0, 1 - together / apart) if apart else 0.0
