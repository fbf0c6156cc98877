"""Tensors that no target changes: they are those of the base, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lora_registry.dtypes import DTYPES
from lora_registry.merge.judge import Answer, Judgement
from lora_registry.merge.nearest import nearest
from lora_registry.ops.arrays import Array, dtype_name

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


def judge_untouched(name: str, base: Array, merged: Array, random: np.random.Generator, *, every: bool) -> Judgement:
    """Compare a tensor with that of the base: bits, or what they become in another floating-point type.

    Args:
        name: of the tensor.
        base: as the base has it.
        merged: as the merged checkpoint has it.
        random: draws the blocks that are compared.
        every: all blocks are compared; otherwise the first, the last, and a few between them.
    """
    dtype = dtype_name(merged.dtype)

    def answer(found: Answer, says: str, blocks: int, of: int) -> Judgement:
        return Judgement(name=name, targets=(), answer=found, says=says, dtype=dtype, rows=blocks, of=of)

    if base.shape != merged.shape:
        return answer(Answer.DOES_NOT, f"its shape is {list(merged.shape)}, the base's {list(base.shape)}", 0, 0)
    same = base.dtype == merged.dtype
    if not same and not all(DTYPES[dtype_name(each.dtype)].floating for each in (base, merged)):
        says = f"it is {dtype}, and the base's {dtype_name(base.dtype)}: no rule says what one becomes in the other"
        return answer(Answer.UNDECIDED, says, 0, 0)
    one, other = base.reshape(-1), merged.reshape(-1)
    blocks = -(-one.size // _BLOCK)
    looked = list(_picked(blocks, random, every=every))
    for number in looked:
        place = slice(number * _BLOCK, (number + 1) * _BLOCK)
        if not _equal(one[place], other[place], dtype):
            kept = "it is not the base's, and no target changes it"
            return answer(Answer.DOES_NOT, kept, len(looked), blocks)
    says = "byte-equal to the base" if same else f"the base's, converted to {dtype}"
    return answer(Answer.HOLDS, says, len(looked), blocks)


def _picked(blocks: int, random: np.random.Generator, *, every: bool) -> Iterator[int]:
    if every or blocks <= _BLOCKS:
        yield from range(blocks)
        return
    between = random.choice(np.arange(1, blocks - 1), _BLOCKS - 2, replace=False)
    yield from (0, *sorted(int(number) for number in between), blocks - 1)


def _equal(base: Array, merged: Array, dtype: str) -> bool:
    if base.dtype == merged.dtype:
        return same_bytes(base, merged)
    wanted = nearest(base.astype(np.float64), dtype)
    return bool(np.array_equal(wanted, merged.astype(np.float64), equal_nan=True))
