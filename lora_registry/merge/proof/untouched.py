"""Tensors that no target changes: they are those of the base, byte by byte."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TypeAlias

import numpy as np

from lora_registry.dtypes import DTYPES
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.proof.judgement import Answer, Judgement
from lora_registry.merge.proof.matrix import unrounded
from lora_registry.merge.proof.nearest import nearest
from lora_registry.ops.arrays import Array

Elements: TypeAlias = Callable[[int, int], Array]
"""Gives the elements from one number to before another, flat."""

_BLOCK = 1 << 17
"""Elements that are compared at a time."""
_BLOCKS = 16  # that are compared of a tensor where not all are


def same_bytes(one: Array, other: Array) -> bool:
    """Whether two arrays of one shape and type have equal bits; looked at in blocks, so that memory stays small."""
    first, second = one.reshape(-1), other.reshape(-1)
    return all(
        np.array_equal(first[start : start + _BLOCK].view(np.uint8), second[start : start + _BLOCK].view(np.uint8))
        for start in range(0, first.size, _BLOCK)
    )


def judge_untouched(
    name: str, source: str, base: Checkpoint, merged: Checkpoint, random: np.random.Generator, *, every: bool
) -> Judgement:
    """Compare a tensor with that of the base: bits, or what they become in another floating-point type.

    Args:
        name: of the tensor in the merged checkpoint.
        source: and in the base; of a quantized weight, the values that it stands for are compared.
        base: what it comes from.
        merged: what is judged.
        random: draws the blocks that are compared.
        every: all blocks are compared; otherwise the first, the last, and a few between them.
    """
    dtype, own = merged.dtype(name), base.dtype(source)

    def answer(found: Answer, says: str, blocks: int = 0, of: int = 0) -> Judgement:
        return Judgement(name=name, targets=(), answer=found, says=says, dtype=dtype, rows=blocks, of=of)

    shape = merged.shape(name)
    if base.shape(source) != shape:
        return answer(Answer.DOES_NOT, f"its shape is {list(shape)}, the base's {list(base.shape(source))}")
    if own != dtype and not all(DTYPES[each].floating for each in (own, dtype)):
        says = f"it is {dtype}, and the base's {own}: no rule says what one becomes in the other"
        return answer(Answer.UNDECIDED, says)
    count = prod(shape)
    blocks = -(-count // _BLOCK)
    looked = [(number * _BLOCK, min(count, (number + 1) * _BLOCK)) for number in _picked(blocks, random, every=every)]

    def differing(elements: Elements) -> tuple[int, int] | None:
        """The first place where the merged tensor is not made of these elements."""
        return next((at for at in looked if not _equal(elements(*at), merged.elements(name, *at), dtype)), None)

    def stored(start: int, stop: int) -> Array:
        return base.elements(source, start, stop)

    off = differing(stored)
    if off is None:
        return answer(Answer.HOLDS, _told(own, dtype, computed=base.is_computed(source)), len(looked), blocks)
    before = unrounded(base, source)
    if before is not None and differing(before) is None:
        says = f"what the base stands for, converted to {dtype} without being rounded to {own} first"
        return answer(Answer.HOLDS, says, len(looked), blocks)
    says = "it is not the base's, and no target changes it"
    if base.is_computed(source):
        distance = _distance(stored(*off), merged.elements(name, *off))
        says = f"it is {distance:.2%} off what the base stands for, and no target changes it: the unquantized one?"
    return answer(Answer.DOES_NOT, says, len(looked), blocks)


def _told(own: str, dtype: str, *, computed: bool) -> str:
    if computed:
        return "what the base stands for" if own == dtype else f"what the base stands for, converted to {dtype}"
    return "byte-equal to the base" if own == dtype else f"the base's, converted to {dtype}"


def _distance(base: Array, merged: Array) -> float:
    """The relative distance of two runs of elements."""
    wide = base.astype(np.float64)
    size = float(np.linalg.norm(wide))
    return float(np.linalg.norm(merged.astype(np.float64) - wide)) / size if size > 0 else float("inf")


def _picked(blocks: int, random: np.random.Generator, *, every: bool) -> Iterator[int]:
    if every or blocks <= _BLOCKS:
        yield from range(blocks)
        return
    between = random.choice(np.arange(1, blocks - 1), _BLOCKS - 2, replace=False)
    yield from (0, *sorted(int(number) for number in between), blocks - 1)


def _equal(base: Array, merged: Array, dtype: str) -> bool:
    """Whether ``merged`` is ``base``, or what it becomes in ``dtype``."""
    if base.dtype == merged.dtype:
        return same_bytes(base, merged)
    wanted = nearest(base.astype(np.float64), dtype)
    return bool(np.array_equal(wanted, merged.astype(np.float64), equal_nan=True))
