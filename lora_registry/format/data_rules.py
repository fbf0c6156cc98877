"""The rules that only the bytes of the tensors can break: R-035 and R-045. Everything else shows in the header."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator
from itertools import chain, islice, pairwise
from math import prod
from operator import lt

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.findings import Finding

_BLOCK = 1 << 16  # positions looked at together: 512 KiB


def check_data(adapter: Adapter) -> list[Finding]:
    """R-035 for every tensor whose digest is stated, and R-045 for every sparse target. Reads all of the data."""
    return [finding for target in adapter for finding in (*_digests(target), *_positions(target))]


def _digests(target: Target) -> Iterator[Finding]:
    for role, stated in target.digests.items():
        if role in target.tensors and target.tensors[role].digest() != stated:
            place = f"targets/{target.name}/tensors/{role}"
            yield Finding("R-035", place, f"the bytes do not have the digest {stated}")


def _positions(target: Target) -> Iterator[Finding]:
    """The first position of a sparse target that is out of order or out of the base tensor."""
    index = target.tensors.get("index")
    if target.kind is not Kind.SPARSE or index is None or index.dtype != "I64" or target.shape is None:
        return  # other rules say so
    before, size = -1, prod(target.shape)
    for block in _blocks(index):
        in_order = block[0] > before and all(map(lt, block, islice(block, 1, None)))
        if not in_order or block[-1] >= size:
            place = f"targets/{target.name}/tensors/index"
            yield Finding("R-045", place, _first_problem(before, block, size))
            return
        before = block[-1]


def _blocks(index: Tensor) -> Iterator[array[int]]:
    data = memoryview(index.data).cast("B")
    for start in range(0, len(data), 8 * _BLOCK):
        block = array("q", data[start : start + 8 * _BLOCK].tobytes())
        if sys.byteorder == "big":
            block.byteswap()
        yield block


def _first_problem(before: int, block: array[int], size: int) -> str:
    """The first position of ``block`` that is wrong; ``before`` is the last one of the block before it."""
    for previous, position in pairwise(chain([before], block)):
        if not 0 <= position < size:
            return f"position {position} is none of the {size} of the base tensor"
        if position <= previous:
            return f"position {position} after {previous}: they are not ascending, or one is named twice"
    raise AssertionError("the block was found to be wrong")
