"""Ways in which a program merges something else than the adapter says, each with the sentence that tells it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from math import ceil, floor, log10, sqrt

import numpy as np

from lora_registry.adapter import SCALED, Kind, Target
from lora_registry.merge.proof.formula import change, factors_of, replaces
from lora_registry.merge.proof.matrix import Matrix
from lora_registry.ops.arrays import Array
from lora_registry.ops.rows import reordered
from lora_registry.segments import Rope, Segment, Segments

_ORIENTED = frozenset({Kind.LINEAR, Kind.EMBEDDING, Kind.EXPERTS, Kind.LOHA, Kind.LOKR})
_MOVABLE = frozenset({Kind.LINEAR, Kind.EXPERTS, Kind.BIAS, Kind.LOHA})
_PARTS = 4  # segments whose orders are all tried


@dataclass(frozen=True, slots=True)
class Misreading:
    """One way to read the targets of a tensor wrongly.

    Attributes:
        says: what was done, as the end of a sentence about the tensor.
        targets: whose change that is; none where the base was left as it is.
        times: how often they were applied.
    """

    says: str
    targets: tuple[Target, ...]
    times: int = 1


def misreadings(targets: Sequence[Target], base: Matrix, merged: Array, rows: Array) -> Iterator[Misreading]:
    """What may have been done instead, the likely first.

    Args:
        targets: the changes of one tensor.
        base: W as a matrix.
        merged: the given rows of what should be W', float64.
        rows: which.
    """
    own = tuple(targets)
    yield Misreading("it is the base: the adapter was not applied", ())
    if not any(replaces(target) for target in own):
        yield Misreading("the adapter was applied twice", own, 2)
    for target in own:
        for says, other in _one(target, base, merged, rows, alone=len(own) == 1):
            yield Misreading(says, tuple(other if each is target else each for each in own))


def _one(target: Target, base: Matrix, merged: Array, rows: Array, *, alone: bool) -> Iterator[tuple[str, Target]]:
    if "magnitude" in target.tensors:
        tensors = {role: tensor for role, tensor in target.tensors.items() if role != "magnitude"}
        yield (
            "the magnitude was left out: DoRA read as LoRA",
            replace(target, tensors=tensors, digests={}),
        )
    if target.kind in SCALED:
        for says, scale in _scales(target, base, merged, rows, alone=alone):
            yield (
                f"the change was applied with scale {scale:.6g} instead of {target.scale:.6g}{says}",
                replace(target, scale=scale),
            )
    if target.kind in _ORIENTED and target.shape is not None and target.shape[-1] == target.shape[-2]:
        layout = (*target.layout[:-2], target.layout[-1], target.layout[-2])
        yield "the change was transposed before it was added", replace(target, layout=layout)
    if target.kind in _MOVABLE and target.shape is not None:
        yield from _orders(target)


def _scales(target: Target, base: Matrix, merged: Array, rows: Array, *, alone: bool) -> Iterator[tuple[str, float]]:
    """Scales that a rule about α and the rank gives instead, then the one that fits the tensor best."""
    s = target.scale
    known = [(-s, "; it was subtracted"), (1.0, "; unscaled")]
    ranks = (
        [target.rank] if target.rank else [target.tensors[role].shape[0] for role in ("A1",) if role in target.tensors]
    )
    for rank in ranks:
        known += [
            (s / sqrt(rank), "; a rank-stabilized scale (rsLoRA) read as α / r?"),
            (s * sqrt(rank), "; α / r read as rank-stabilized (rsLoRA)?"),
            (s * rank, "; α not divided by the rank?"),
            (s / rank, "; divided by the rank twice?"),
        ]
    told = {s}
    for scale, says in known:
        if scale not in told and np.isfinite(scale):
            told.add(scale)
            yield says, scale
    if not alone or replaces(target) or "magnitude" in target.tensors:
        return
    product = change(target, factors_of(target), rows)
    difference = merged - base[rows].astype(np.float64)
    size = float(np.vdot(product, product))
    with np.errstate(all="ignore"):
        best = float(np.vdot(product, difference)) / size if size > 0 else float("nan")
        # Rounding errors are as good as random: they move the fit by about their size over that of the change.
        off = float(np.linalg.norm(difference - best * product)) / np.sqrt(difference.size * size)
    if not np.isfinite(best) or best == 0:
        return
    for scale in _short_numbers(best, max(4 * off, 1e-6 * abs(best))):
        if scale not in told:
            yield "", scale


def _short_numbers(value: float, off: float) -> Iterator[float]:
    """Numbers within ``off`` of ``value``, those of few digits first, which people choose; a dozen at most."""
    tried: set[float] = set()
    for digits in range(1, 7):
        step = 10.0 ** (floor(log10(abs(value))) - digits + 1)
        for number in range(ceil((value - off) / step), min(floor((value + off) / step), ceil(value / step) + 12) + 1):
            scale = float(f"{number * step:.{digits}g}")
            if scale not in tried and len(tried) < 12:
                tried.add(scale)
                yield scale


def _orders(target: Target) -> Iterator[tuple[str, Target]]:
    """The outputs of a fused tensor in every other order that its segments allow."""
    assert target.shape is not None
    segments = target.segments
    if segments is None:
        out = target.shape[target.layout.index("out")]
        if out % 2 == 0 and target.kind is not Kind.BIAS:
            halves = Segments((Segment("first half", out // 2), Segment("second half", out // 2)))
            swapped = Segments(halves.parts[::-1])
            yield "the two halves of its outputs were swapped", reordered(replace(target, segments=halves), swapped)
        return
    for says, other in _other_orders(segments):
        yield says, reordered(target, other)


def _other_orders(segments: Segments) -> Iterator[tuple[str, Segments]]:
    own = ", ".join(part.name for part in segments.parts)
    if 1 < len(segments.parts) <= _PARTS:
        for parts in permutations(segments.parts):
            if parts != segments.parts:
                other = ", ".join(part.name for part in parts)
                yield (
                    f"its outputs were changed in the order {other}, and the base has {own}",
                    replace(segments, parts=parts),
                )
    lengths = {part.length for part in segments.parts}
    for blocks in (1, *sorted(lengths)):
        if blocks != segments.interleave and all(length % blocks == 0 for length in lengths):
            yield (
                f"{own} were taken as {_told(blocks)}, and the base has them {_told(segments.interleave)}",
                replace(segments, interleave=blocks),
            )
    flipped = tuple(_flipped(part) for part in segments.parts)
    if flipped != segments.parts:
        yield (
            "the outputs of its heads were taken in the other rotary order (halves and pairs)",
            replace(segments, parts=flipped),
        )


def _told(blocks: int) -> str:
    return "one after the other" if blocks == 1 else f"interleaved in {blocks} blocks"


def _flipped(part: Segment) -> Segment:
    if part.rope is None:
        return part
    return replace(
        part, rope=Rope(part.rope.head, "pairs" if part.rope.order == "halves" else "halves", part.rope.rotary)
    )
