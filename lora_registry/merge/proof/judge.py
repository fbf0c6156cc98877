"""Does a tensor hold what the formulas give? Judged element by element, and explained where it does not.

An element holds if some sound arithmetic gives it: it lies between the roundings of the exact result minus and
plus the bound on errors of summation (:class:`~lora_registry.merge.proof.outcome.Outcome`). Where elements do not hold,
the known orders of rounding are tried, and then the known misreadings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Target
from lora_registry.dtypes import DTYPES
from lora_registry.merge.proof.formula import replaced, replaces
from lora_registry.merge.proof.judgement import Answer, Judgement
from lora_registry.merge.proof.matrix import Matrix
from lora_registry.merge.proof.misreadings import misreadings
from lora_registry.merge.proof.nearest import nearest, unit
from lora_registry.merge.proof.outcome import Outcome
from lora_registry.merge.proof.roundings import ONCE, Roundings, roundings
from lora_registry.ops.arrays import Array, dtype_name

BLOCK = 1 << 14
"""Elements that are judged at a time: arrays of 128 KB, for which the C library does not fetch new pages each time."""
_TRIED = 1 << 18  # elements that every explanation is tried on
_FEWEST, _CLOSE = 4, 2
_ALIKE = 0.98  # the cosine from which on a change is said to be larger or smaller than another
_SURE = 1 / 16  # of a change, what may be a matter of chance


@dataclass(slots=True)
class _Counts:
    """What adds up over blocks of rows."""

    elements: int = 0
    off: int = 0
    largest: float = 0.0
    like_base: bool = True
    changes: bool = False


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to make the elements: what is added to, and what is rounded.

    Attributes:
        base: W as a matrix.
        steps: what is rounded on the way.
        earlier: the element type that W was not rounded to, although the view of the base is.
    """

    base: Matrix
    steps: Roundings
    earlier: str | None = None

    def __str__(self) -> str:
        if self.earlier is None:
            return str(self.steps)
        return f"{self.steps}; added to the values of the base before these were rounded to {self.earlier}"


def judge(
    name: str,
    targets: Sequence[Target],
    base: Matrix,
    merged: Matrix,
    rows: Array,
    *,
    unrounded: Matrix | None = None,
    quantized: bool = False,
    once_only: bool = False,
) -> Judgement:
    """Hold a tensor of a merged checkpoint against base and targets.

    Args:
        name: of the tensor.
        targets: what changes it; at least one.
        base: W, a matrix of rows and columns, of any type; for a tensor that the base does not have, zeros.
        merged: what should be W', of the same shape.
        rows: which rows to look at, ascending.
        unrounded: of a quantized weight, W before it is rounded to the type of its view.
        quantized: W is what a quantized weight stands for.
        once_only: an order with more than one rounding does not hold (P-015).
    """
    dtype = dtype_name(merged.dtype)
    if not DTYPES[dtype].floating or not DTYPES[dtype_name(base.dtype)].floating:
        return _judge_bits(name, targets, base, merged, rows)
    case = _Case(name, tuple(targets), base, merged, rows, dtype, unrounded, quantized=quantized)
    once = _Way(base, ONCE)
    counts, failing = case.hold(once)
    if failing is None:
        return _sound(case, counts, once)
    found = case.explain(failing)
    if isinstance(found, _Way):
        again, failing_too = case.hold(found)
        if failing_too is None:
            judged = _sound(case, again, found)
            if once_only and judged.answer is Answer.HOLDS and found.steps != ONCE:
                return case.judgement(Answer.DOES_NOT, judged.says, again)
            return judged
        found = case.explain(failing_too, ordered=False)
    if isinstance(found, str):
        return case.judgement(Answer.DOES_NOT, found, case.count())
    return _unexplained(case, failing)


def _sound(case: _Case, counts: _Counts, way: _Way) -> Judgement:
    """Judge a tensor of which every element holds: was there anything to see."""
    if counts.like_base and counts.changes:
        if len(case.rows) == len(case.base) and counts.off == 0:
            says = f"nothing of the change is left in {case.dtype}: every element rounds to that of the base"
            return case.judgement(Answer.HOLDS, says, counts)
        says = "the rows that were looked at are the same with and without the adapter"
        return case.judgement(Answer.UNDECIDED, says, counts)
    return case.judgement(Answer.HOLDS, str(way), counts)


def _unexplained(case: _Case, failing: Array) -> Judgement:
    counts = case.count()
    if counts.largest <= _CLOSE:
        says = f"within {counts.largest:.2g} units everywhere, but in no order of roundings that is known"
        return case.judgement(Answer.UNDECIDED, says, counts)
    return case.judgement(Answer.DOES_NOT, case.resemblance(failing), counts)


class _Case:
    """One tensor, with what it takes to judge it."""

    def __init__(
        self,
        name: str,
        targets: tuple[Target, ...],
        base: Matrix,
        merged: Matrix,
        rows: Array,
        dtype: str,
        unrounded: Matrix | None = None,
        *,
        quantized: bool = False,
    ) -> None:
        self.name = name
        self.targets = targets
        self.base = base
        self.merged = merged
        self.rows = rows
        self.dtype = dtype
        self.unrounded = unrounded
        self.quantized = quantized

    def judgement(self, answer: Answer, says: str, counts: _Counts) -> Judgement:
        """The findings about this tensor, put together."""
        return Judgement(
            name=self.name,
            targets=tuple(target.name for target in self.targets),
            answer=answer,
            says=says,
            dtype=self.dtype,
            rows=len(self.rows),
            of=len(self.base),
            largest=counts.largest,
            off=counts.off / counts.elements if counts.elements else 0.0,
        )

    def hold(self, way: _Way) -> tuple[_Counts, Array | None]:
        """Count over all rows; the rows of the first block in which an element does not hold, None where all do."""
        right = Outcome(self.targets, self.base, self.dtype)
        right_way = way.base is self.base and way.steps == ONCE
        outcome = right if right_way else Outcome(self.targets, way.base, self.dtype, way.steps)
        counts = _Counts()
        for rows in self._blocks():
            off = self._add(counts, right, rows)
            asked = off if right_way else rows  # what is rounded once, and rightly, holds
            if len(asked) and not _holds(outcome, asked, self._values(asked)):
                return counts, self._sample(rows, off)
        return counts, None

    def count(self) -> _Counts:
        """Count over all rows against the correctly rounded results, whatever holds."""
        outcome, counts = Outcome(self.targets, self.base, self.dtype), _Counts()
        for rows in self._blocks():
            self._add(counts, outcome, rows)
        return counts

    def explain(self, rows: Array, *, ordered: bool = True) -> _Way | str | None:
        """The way, or the misreading, that gives what stands in these rows."""
        values = self._values(rows)
        if not np.isfinite(values).all() and np.isfinite(self.base[rows].astype(np.float64)).all():
            return "elements are not finite although those of the base are"
        for way in self._ways() if ordered else ():
            if _holds(Outcome(self.targets, way.base, self.dtype, way.steps), rows, values):
                return way
        few = [way for way in self._ways(first=True) if way.steps.product is None]
        for reading in misreadings(self.targets, self.base, values, rows):
            for way in few:
                outcome = Outcome(reading.targets, way.base, self.dtype, way.steps, times=reading.times)
                if _holds(outcome, rows, values):
                    return reading.says
        return None

    def _ways(self, *, first: bool = False) -> Iterator[_Way]:
        """Every way that is known, the likely ones first; ``first`` one is to round once, as is right."""
        own = dtype_name(self.base.dtype)
        for steps in roundings(self.targets, own, self.dtype):
            if first or steps != ONCE:
                yield _Way(self.base, steps)
        if self.unrounded is not None:
            for steps in roundings(self.targets, dtype_name(self.unrounded.dtype), self.dtype):
                if steps.base != own:  # which is the view
                    yield _Way(self.unrounded, steps, own)

    def resemblance(self, rows: Array) -> str:
        """How what was changed is like what was wanted."""
        base = self.base[rows].astype(np.float64)
        wanted = Outcome(self.targets, self.base, self.dtype).exact(rows) - base
        found = self._values(rows) - base
        size, length = float(np.linalg.norm(wanted)), float(np.linalg.norm(found))
        share = float(np.vdot(wanted, found)) / size**2 if size > 0 else 0.0
        cosine = share * size / length if length > 0 else 0.0
        if cosine < _ALIKE and self._has_all(rows, wanted, found, share):
            apart = float(np.linalg.norm(found - wanted) / np.linalg.norm(base))
            whose = "those that the base stands for: the unquantized ones?" if self.quantized else "the base's"
            return f"the adapter's change is in it, added to weights that are {apart:.2%} off {whose}"
        if not np.isfinite(cosine) or abs(cosine) < 0.5:
            return f"something else was changed: the cosine with the adapter's change is {cosine:.3f}"
        return f"the change is {length / size:.4g} times as large as the adapter's, at a cosine of {cosine:.6f}"

    def _has_all(self, rows: Array, wanted: Array, found: Array, share: float) -> bool:
        """Whether the wanted change is in what was ``found``, beside something else that has nothing to do with it."""
        rest = found - share * wanted
        # A rest that is independent of the change moves the share by about this much.
        by_chance = float(np.linalg.norm(rest) / (np.linalg.norm(wanted) * np.sqrt(found.size)))
        base = self.base[rows].astype(np.float64)
        everywhere = np.count_nonzero(self._values(rows) != nearest(base + wanted, self.dtype)) >= found.size / 2
        small = np.linalg.norm(rest) <= np.linalg.norm(base) / 2
        return bool(everywhere and small and by_chance < _SURE and abs(share - 1) <= 4 * by_chance)

    def _add(self, counts: _Counts, outcome: Outcome, rows: Array) -> Array:
        """Count a block; the rows of it that have an element other than the correctly rounded one."""
        exact, values = outcome.exact(rows), self._values(rows)
        right = nearest(exact, self.dtype)
        differs = (values != right) & ~(np.isnan(values) & np.isnan(right))
        off: Array = rows[differs.any(1)]
        counts.elements += values.size
        counts.off += int(np.count_nonzero(differs))
        base = self.base[rows].astype(np.float64) if len(off) or counts.like_base or not counts.changes else exact
        counts.changes = counts.changes or not np.array_equal(exact, base, equal_nan=True)
        if counts.like_base:
            counts.like_base = bool(np.array_equal(nearest(base, self.dtype), values, equal_nan=True))
        if len(off):
            apart = _units_off(values[differs], right[differs], base[differs], self.dtype)
            counts.largest = max(counts.largest, apart)
        return off

    def _values(self, rows: Array) -> Array:
        values: Array = self.merged[rows].astype(np.float64)
        return values

    def _blocks(self) -> Iterator[Array]:
        step = max(1, BLOCK // max(1, self.base.shape[1]))
        for start in range(0, len(self.rows), step):
            yield self.rows[start : start + step]

    def _sample(self, rows: Array, off: Array) -> Array:
        """Few enough rows to try every explanation on, with one that does not hold among them."""
        count = max(_FEWEST, min(64, _TRIED // max(1, self.base.shape[1])))
        picked: Array = np.unique(np.concatenate((off[: count // 2], rows[: count // 2])))
        return picked


def _holds(outcome: Outcome, rows: Array, values: Array) -> bool:
    return bool(outcome.interval(rows).holds(values).all())


def _units_off(values: Array, right: Array, before: Array, dtype: str) -> float:
    """The largest distance of ``values`` from the ``right`` ones; infinite where one is not finite."""
    larger = np.maximum(np.abs(right), np.abs(before))
    if not (np.isfinite(values) & np.isfinite(larger)).all():
        return float("inf")
    return float((np.abs(values - right) / unit(larger, dtype)).max())


def _judge_bits(name: str, targets: Sequence[Target], base: Matrix, merged: Matrix, rows: Array) -> Judgement:
    """Integers and booleans are not rounded: they are replaced, bit by bit, or wrong."""
    dtype = dtype_name(merged.dtype)
    case = _Case(name, tuple(targets), base, merged, rows, dtype)
    if base.dtype != merged.dtype or not all(replaces(target) for target in targets):
        says = f"it is {dtype}, and the base's {dtype_name(base.dtype)}: no rule says what one becomes in the other"
        return case.judgement(Answer.UNDECIDED, says, _Counts())
    wanted = base[rows]
    for target in targets:
        wanted = replaced(target, rows, wanted)
    off = int(np.count_nonzero(wanted != merged[rows]))
    counts = _Counts(elements=wanted.size, off=off)
    return case.judgement(
        Answer.DOES_NOT if off else Answer.HOLDS,
        f"{off} elements are other ones" if off else "replaced bit by bit",
        counts,
    )
