"""Does a weight that was quantized again hold what was wanted? Recomputed, encoded, and compared value by value.

W' is made in float64 as for any merge, and encoded as the scheme of the base encodes it. The values that the merged
weight stands for are then held against those of that encoding: not its bytes, because an error of float32 in the sum
moves the last bit of a scale, and now and then a code whose value lies on a boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import fsum, lcm

import numpy as np

from lora_registry.adapter import Target
from lora_registry.errors import UnsupportedError
from lora_registry.merge.proof.judgement import Answer, Judgement
from lora_registry.merge.proof.matrix import Matrix
from lora_registry.merge.proof.misreadings import misreadings
from lora_registry.merge.proof.outcome import Outcome
from lora_registry.ops.arrays import Array, round_to
from lora_registry.ops.fidelity import Sums, fidelity, sums
from lora_registry.quantized.encoding.choice import encoder_for
from lora_registry.quantized.encoding.encoder import Encoder
from lora_registry.quantized.weight import QuantizedWeight, row_count

_SEARCHED = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"})
"""Schemes that search for scales: now and then, a mere error of float32 ends with others that are as good."""
_FEW = 1e-3  # of the elements, how many may have got such scales
_RUN = 256  # elements that have to be as close to W' as those of the encoding are, where they have
_AS_CLOSE = 1.1  # in the sum of the squares
_CLOSE = 2.0**-20  # relative, values that have the same code and scales that are as good as equal
_FAITHFUL = 0.1
"""How far off 1 the share of a change may be that an encoding keeps, for the share itself to tell anything."""
_VISIBLE = 0.25  # of a change, what has to be left of it for a mistake to be told from another
_ELEMENTS = 1 << 18  # encoded at a time, more or less
_TRIED = 1 << 18  # that every misreading is tried on


@dataclass(frozen=True, slots=True)
class Requantized:
    """One weight of a merged checkpoint that is quantized in the scheme of its base.

    Attributes:
        name: of the weight.
        targets: what changes it; at least one.
        base: W as a matrix, rounded to the type of the view.
        before: W as it is stored; None where it is not quantized, or in another scheme.
        after: W' as it is stored.
    """

    name: str
    targets: tuple[Target, ...]
    base: Matrix
    before: QuantizedWeight | None
    after: QuantizedWeight


def judge_requantized(weight: Requantized, rows: Array) -> Judgement:
    """Hold a weight that was quantized again against base and targets.

    Args:
        weight: what is judged.
        rows: which rows of the matrix to look at, ascending; whatever is encoded together with them is looked at too.
    """
    case = _Case(weight, rows)
    counts = case.hold(weight.targets)
    if case.encoder is None:
        return case.judgement(Answer.UNDECIDED, "quantized, and nothing says in which way, to do it again", counts)
    scheme = case.encoder.name
    if counts.off == 0 and counts.like_base and counts.changes:
        if case.every:
            says = f"nothing of the change is left in {scheme}: every element is that of the base"
            return case.judgement(Answer.HOLDS, says, counts)
        says = "the rows that were looked at are the same with and without the adapter"
        return case.judgement(Answer.UNDECIDED, says, counts)
    if counts.holds:
        return case.judgement(Answer.HOLDS, f"quantized again as {scheme} is", counts)
    mistake = case.explain() or case.another_size(counts)
    if mistake is not None:
        return case.judgement(Answer.DOES_NOT, mistake, counts)
    return case.judgement(Answer.UNDECIDED, f"quantized again, and not as loreg encodes {scheme}", counts)


@dataclass(slots=True)
class _Counts:
    """What adds up over blocks."""

    elements: int = 0
    off: int = 0
    far: int = 0
    like_base: bool = True
    changes: bool = False
    figures: list[Sums] = field(default_factory=list)
    encoded: list[Sums] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether what is off is what an error of float32 explains."""
        return self.off == 0 or (self.far == 0 and self.off <= max(_RUN, _FEW * self.elements))


class _Case:
    """One weight, with what it takes to judge it."""

    def __init__(self, weight: Requantized, rows: Array) -> None:
        self._weight = weight
        self.encoder = _encoder(weight)
        self._columns, self._width = weight.base.shape[1], weight.after.shape[-1]
        step = 1 if self.encoder is None else self.encoder.step
        self._together = lcm(step * self._width, self._columns)
        self._total = row_count(weight.after) * self._width
        block = max(1, _ELEMENTS // self._together) if len(rows) == len(weight.base) else 1
        self._size = block * self._together
        self._blocks: list[int] = np.unique(rows * self._columns // self._size).tolist()
        self.every = len(self._blocks) == -(-self._total // self._size)

    def judgement(self, answer: Answer, says: str, counts: _Counts) -> Judgement:
        """The findings, put together."""
        looked = sum(stop - start for start, stop in self._places(self._blocks))
        return Judgement(
            name=self._weight.name,
            targets=tuple(target.name for target in self._weight.targets),
            answer=answer,
            says=says,
            dtype=self._weight.after.dtype if self.encoder is None else self.encoder.name,
            rows=looked // self._columns,
            of=len(self._weight.base),
            off=counts.off / counts.elements if counts.elements else 0.0,
            fidelity=fidelity(counts.figures) if counts.figures else None,
        )

    def hold(self, targets: Sequence[Target], *, few: bool = False) -> _Counts:
        """Count the elements that are not what the encoding of W' gives, for these targets."""
        outcome = Outcome(targets, self._weight.base, self._weight.after.dtype)
        encoder = _encoder(self._weight)
        if encoder is not None:
            encoder.prepare()
            if encoder.needs_range:
                self._cover(encoder, outcome)
        counts = _Counts()
        blocks = self._blocks[: max(1, _TRIED // self._size)] if few else self._blocks
        for start, stop in self._places(blocks):
            self._add(counts, encoder, outcome, start, stop)
        return counts

    def explain(self) -> str | None:
        """The misreading whose encoding is what stands there, in the first blocks that were looked at."""
        start, stop = next(self._places(self._blocks))
        rows = np.arange(start // self._columns, stop // self._columns)
        values = self._stored(self._weight.after, start, stop).reshape(len(rows), -1).astype(np.float64)
        for reading in misreadings(self._weight.targets, self._weight.base, values, rows):
            if reading.times > 1:
                continue  # the second time, it is another base that is quantized
            if self.hold(reading.targets, few=True).holds:
                counts = self.hold(reading.targets)
                seen = not reading.targets or _share(counts.encoded) > _VISIBLE  # of two that are lost, neither is
                if seen and counts.holds:
                    return reading.says
        return None

    def another_size(self, counts: _Counts) -> str | None:
        """What tells that the change has another size, where the scheme is fine enough to show it."""
        encoded, found = _share(counts.encoded), _share(counts.figures)
        if abs(encoded - 1) > _FAITHFUL or abs(found - encoded) < _FAITHFUL:
            return None
        return f"along the adapter's change, it holds {found:.4g} times as much, and its encoding would {encoded:.4g}"

    def _cover(self, encoder: Encoder, outcome: Outcome) -> None:
        low = high = 0.0
        for start, stop in self._places(list(range(-(-self._total // self._size)))):
            exact = outcome.exact(np.arange(start // self._columns, stop // self._columns))
            low, high = min(low, float(exact.min())), max(high, float(exact.max()))
        encoder.cover(low, high)

    def _places(self, blocks: list[int]) -> Iterator[tuple[int, int]]:
        for number in blocks:
            yield number * self._size, min((number + 1) * self._size, self._total)

    def _stored(self, weight: QuantizedWeight, start: int, stop: int) -> Array:
        return weight.rows(start // self._width, stop // self._width)

    def _add(self, counts: _Counts, encoder: Encoder | None, outcome: Outcome, start: int, stop: int) -> None:
        rows = np.arange(start // self._columns, stop // self._columns)
        before = np.ascontiguousarray(self._weight.base[rows]).astype(np.float32).reshape(-1, self._width)
        wanted = outcome.exact(rows).reshape(before.shape)
        radius = outcome.bounds(rows).radius.reshape(before.shape)
        found = self._stored(self._weight.after, start, stop)
        kept = round_to(found, self._weight.after.dtype).astype(np.float64)
        counts.elements += found.size
        counts.changes = counts.changes or not np.array_equal(wanted, before)
        counts.like_base = counts.like_base and np.array_equal(kept, before)
        counts.figures.append(_sums(before, wanted, kept))
        if encoder is not None:
            first, last = start // self._width, stop // self._width
            off, shown = _off(encoder, first, last, before, wanted, radius, found)
            counts.off += int(np.count_nonzero(off))
            if off.any():
                searched = encoder.name in _SEARCHED
                counts.far += int(np.count_nonzero(off & ~_as_close(found, shown, wanted) if searched else off))
            counts.encoded.append(_sums(before, wanted, round_to(shown, self._weight.after.dtype).astype(np.float64)))


def _encoder(weight: Requantized) -> Encoder | None:
    """The encoder of the base's scheme; None where there is none, or W' is not stored in that."""
    before, after = weight.before, weight.after
    if before is None or type(before) is not type(after) or (before.shape, before.dtype) != (after.shape, after.dtype):
        return None
    try:
        return encoder_for(before, weight.name)
    except UnsupportedError:
        return None


def _sums(before: Array, wanted: Array, kept: Array) -> Sums:
    return sums(before.reshape(-1).astype(np.float64), wanted.reshape(-1), kept.reshape(-1))


def _share(figures: list[Sums]) -> float:
    """How much of the wanted change is in the one that was made: the factor that fits best."""
    wanted = fsum(each.wanted for each in figures)
    return 1 + fsum(each.cross for each in figures) / wanted if wanted > 0 else 0.0


def _off(
    encoder: Encoder, first: int, last: int, before: Array, wanted: Array, radius: Array, found: Array
) -> tuple[Array, Array]:
    """Which elements are not what the encoding of ``wanted`` gives, or of what float32 may have made of it.

    Args:
        encoder: of the base's weight.
        first: number of the first row.
        last: one past the last.
        before: the rows of W, float32.
        wanted: those of W', float64.
        radius: how far float32 may be off them.
        found: what the merged weight stands for, float32.

    Returns:
        These, and what the encoding of ``wanted`` stands for, float32.
    """
    left = np.ones(found.shape, np.bool_)
    right = found
    for side in (0.0, 1.0, -1.0):  # outward and inward: scales follow from the largest elements
        tried = (wanted + side * np.copysign(radius, wanted)).astype(np.float32)
        _, shown = encoder.encode(first, last, before, np.where(wanted == before, before, tried))
        right = shown if side == 0 else right
        sizes = np.maximum(np.abs(shown), np.abs(found))
        slack = radius.max() + _CLOSE * sizes
        alike = np.abs(found - shown) <= slack
        # Of two codes on both sides of a boundary, neither is farther off than the other.
        even = np.abs(np.abs(found - wanted) - np.abs(shown - wanted)) <= slack
        left &= ~(alike | even)
        if not left.any():
            break
    return left, right


def _as_close(found: Array, shown: Array, wanted: Array) -> Array:
    """Which elements are in runs that are as close to the wanted ones as those of the encoding, on the whole."""
    starts = np.arange(0, found.size, _RUN)
    own, encoded = (np.add.reduceat(np.square(each - wanted).reshape(-1), starts) for each in (found, shown))
    result: Array = np.repeat(own <= _AS_CLOSE * encoded, _RUN)[: found.size].reshape(found.shape)
    return result
