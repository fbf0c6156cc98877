"""A change of a stack of experts, as the changes of the tensors that a checkpoint has in the place of the stack.

Slicing is exact: expert e of ΔW is s · B[e] · A[e], and rows of it are those of B[e]. So every tensor gets a target
of its own, and all that follows, from the plan to the reverse patch, knows nothing of stacks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, cycle, pairwise
from math import prod

import numpy as np

from lora_registry.adapter import Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import from_array, to_array
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.change import positions
from lora_registry.ops.fingerprint import stacked_fingerprint

_LAYOUT = ("expert", "out", "in")
DIVISIBLE = frozenset({Kind.EXPERTS, Kind.FULL, Kind.SPARSE})
"""The kinds that can be of a stack (section 5 of the format), and of its tensors."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Matrices that a model holds as one tensor (expert, out, in).

    Attributes:
        tensors: names of the stored matrices (out, in): for each expert, one for each run of its outputs.
        heights: outputs of each run.
        shape: of the stack.
    """

    tensors: tuple[tuple[str, ...], ...]
    heights: tuple[int, ...]
    shape: tuple[int, int, int]

    @property
    def names(self) -> Iterator[str]:
        """Names of the stored matrices, in the order of the elements of the stack."""
        return (name for expert in self.tensors for name in expert)


def stack_of(tensors: tuple[tuple[str, ...], ...], base: BaseModel) -> Stack:
    """The stack that the named tensors make.

    Raises:
        InvalidInputError: they are no matrices that fit together.
    """
    first = [base.shape(name) for name in tensors[0]]
    fits = all(len(shape) == 2 and shape[1] == first[0][1] for shape in first)
    if not fits or any([base.shape(name) for name in expert] != first for expert in tensors):
        raise InvalidInputError(f"{tensors[0][0]} and the other experts of its layer have shapes that do not stack")
    heights = tuple(shape[0] for shape in first)
    return Stack(tensors, heights, (len(tensors), sum(heights), first[0][1]))


def fits_stack(target: Target, stack: Stack) -> bool:
    """Whether ``target`` changes a tensor of the shape, and the axis order, of ``stack``."""
    return target.shape == stack.shape and target.layout in ((), _LAYOUT)


def spread(target: Target, stack: Stack) -> Iterator[Target]:
    """The changes of the stored tensors, under their names, that make the change of the stack.

    Args:
        target: of a kind in :data:`DIVISIBLE`, one that :func:`fits_stack`. Without fingerprints; a tensor in which a
            sparse target changes nothing has none.
        stack: what the base has in the place of its tensor.
    """
    if target.kind is Kind.SPARSE:
        yield from _spread_positions(target, stack)
        return
    runs = list(pairwise(accumulate(stack.heights, initial=0)))
    arrays = {role: to_array(tensor) for role, tensor in target.tensors.items()}
    for expert, names in enumerate(stack.tensors):
        for name, (begin, end) in zip(names, runs, strict=True):
            tensors = {
                role: from_array(array[expert] if role == "A" else array[expert, begin:end])
                for role, array in arrays.items()
            }
            part = _part(target, name, (end - begin, stack.shape[2]), tensors)
            yield replace(part, kind=Kind.LINEAR, layout=("out", "in")) if target.kind is Kind.EXPERTS else part


def _part(target: Target, name: str, shape: tuple[int, int], tensors: dict[str, Tensor]) -> Target:
    return replace(target, name=name, shape=shape, tensors=tensors, digests={}, fingerprint=None, segments=None)


def _spread_positions(target: Target, stack: Stack) -> Iterator[Target]:
    index, delta = positions(target), to_array(target.tensors["delta"])
    begin = 0
    for name, height in zip(stack.names, cycle(stack.heights)):  # the heights begin again with every expert
        shape = (height, stack.shape[2])
        own = slice(*np.searchsorted(index, (begin, begin + prod(shape))))
        if len(index[own]):
            tensors = {"index": from_array(index[own] - begin), "delta": from_array(delta[own])}
            yield _part(target, name, shape, tensors)
        begin += prod(shape)


def stack_fingerprint(stack: Stack, base: BaseModel) -> Digest:
    """The fingerprint that the stack has as one tensor, of which no more than one matrix is read at a time."""
    return stacked_fingerprint(stack.shape, (base.array(name) for name in stack.names))
