"""The adapter between two checkpoints: the difference of each matrix by its singular values.

A tuned checkpoint holds W + ΔW rounded to its element type, and the rounding is part of the difference. In bfloat16
it can be larger than the change itself. Its size is known (:mod:`~lora_registry.algebra.noise`), so that it can be
told how much of what was left out is rounding, and which singular values stand above it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import hypot, prod, sqrt
from typing import TypeAlias

import numpy as np

from lora_registry.adapter import Adapter, Base, Json, Kind, Target
from lora_registry.algebra.core import LowRank, one_thread
from lora_registry.algebra.dense import Approximation, approximate
from lora_registry.algebra.noise import rounding_noise
from lora_registry.algebra.recipe import check_dtype
from lora_registry.algebra.retention import Retention, bias_of, retained
from lora_registry.algebra.slices import refilled
from lora_registry.algebra.truncation import Truncation
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array, from_array, widened
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.progress import Counted, Progress
from lora_registry.text import listed

_MARGIN = 1.1
"""The largest singular value of errors varies a little; what is below its bound times this is taken for noise."""

_TERM = 0.2
"""What one term of a sum in the type of the weights adds to the variance, in units of one rounding of the sum.

Measured with OpenBLAS at ranks from 3 to 64, where 0.17 is enough."""

_TABLES = frozenset({"embed_tokens", "embed_in", "tok_embeddings", "word_embeddings", "wte", "wpe", "shared"})
"""What models call the modules that are embeddings; their matrices are stored (in, out)."""

Reading: TypeAlias = "tuple[Kind, tuple[str, ...]]"
"""How the model reads a tensor, where that is known: the kind of target that changes it, and its layout."""


@dataclass(frozen=True, slots=True)
class Extracted:
    """One tensor that differs.

    Attributes:
        retention: how far the target is from the difference.
        noise: ‖rounding of the tuned weights‖ / ‖difference‖, expected: of what was left out, so much is rounding.
    """

    retention: Retention
    noise: float

    def to_json(self) -> dict[str, str | int | float | None]:
        """The retention, and the noise."""
        return {**self.retention.to_json(), "noise": self.noise}


@dataclass(frozen=True, slots=True)
class Extraction:
    """What was found between two checkpoints.

    Attributes:
        adapter: what makes the tuned one out of the base.
        targets: a record for each target that is a change.
        rounding: names of matrices that differ by no more than the rounding of the tuned checkpoint, and are left out.
    """

    adapter: Adapter
    targets: tuple[Extracted, ...]
    rounding: tuple[str, ...]


def extract(
    base: BaseModel,
    tuned: BaseModel,
    truncation: Truncation,
    *,
    dtype: str = "F32",
    full: bool = False,
    about: Base | None = None,
    readings: Mapping[str, Reading] | None = None,
    progress: Progress | None = None,
) -> Extraction:
    """The adapter that makes ``tuned`` out of ``base``.

    A matrix that differs becomes a linear target, or an embedding one by its name. It is taken as (out, in) where it
    is linear; W' does not depend on that. Where the model says how it reads a tensor, that decides, and a kernel
    becomes a conv target.

    Args:
        base: a checkpoint.
        tuned: another one with the same tensors.
        truncation: what to keep; where it says nothing, the directions that stand above the rounding of ``tuned``.
        dtype: element type of the factors.
        full: whole values for what is no matrix of floats, or has another shape, and changes of biases.
        about: the base as people call it.
        readings: of the tensors for which it is known, as a graph tells it; the others go by their names.
        progress: called with the tensors that are done, and with all.

    Raises:
        UsageError: no element type of factors.
        UnsupportedError: what differs is no matrix of floats, and ``full`` is false; or no truncation is asked for,
            and so many directions of a change stand above the rounding that the factors outweigh the tensor.
        InvalidInputError: ``tuned`` lacks a tensor, nothing differs, or a difference is not finite.
    """
    check_dtype(dtype)
    pair = _Pair(base, tuned, readings or {})
    names = pair.names()
    matrices = [name for name in names if pair.is_matrix(name)]
    others = [name for name in names if not pair.is_matrix(name) and pair.differs(name)]
    if others and not full:
        raise UnsupportedError(
            f"{listed(others)}: what differs is no matrix of floats, or has another shape; ask for full, which takes "
            "the values"
        )
    counted = Counted(progress, len(matrices) + len(others))
    targets, records, rounding = [], [], []
    with one_thread():
        for name in matrices:
            difference = pair.difference(name)
            if not difference.any():
                pass  # not a target
            elif (made := _matrix(name, difference, pair, truncation, dtype)) is None:
                rounding.append(name)
            else:
                targets.append(made[0])
                records.append(made[1])
            counted.advance(1)
        for name in others:
            target, record = _other(name, pair, dtype)
            targets.append(target)
            records += [] if record is None else [record]
            counted.advance(1)
    if not targets:
        raise InvalidInputError(
            "there is nothing to extract: the two checkpoints hold the same values"
            + (f", but for the rounding of {listed(rounding)}" if rounding else "")
        )
    lineage: dict[str, Json] = {
        "operation": "extract",
        "parameters": {**truncation.to_json(), "dtype": dtype, "full": full},
        "parents": [],
    }
    adapter = Adapter(targets=tuple(targets), base=about or Base(), lineage=lineage)
    return Extraction(adapter, tuple(records), tuple(rounding))


class _Pair:
    """Two checkpoints, tensor by tensor."""

    def __init__(self, base: BaseModel, tuned: BaseModel, readings: Mapping[str, Reading]) -> None:
        self.base, self.tuned = base, tuned
        self._readings = readings
        self._known = frozenset(base.names())

    def names(self) -> list[str]:
        """The tensors of ``tuned``, which has all of the base's but those that are stored under a tied name."""
        names = sorted(self.tuned.names())
        tied = {*self.base.ties, *self.tuned.ties, *self.base.ties.values()}
        if missing := sorted(self._known - {*names, *tied}):
            raise InvalidInputError(f"the tuned checkpoint lacks {listed(missing)}")
        return names

    def fits(self, name: str) -> bool:
        """Whether the base has it too, and in the same shape."""
        return name in self._known and self.base.shape(name) == self.tuned.shape(name)

    def is_float(self, name: str) -> bool:
        """Whether it is there in both, of floats."""
        return self.fits(name) and all(DTYPES[model.dtype(name)].floating for model in (self.base, self.tuned))

    def is_matrix(self, name: str) -> bool:
        """Whether it is a matrix of floats in both, or a kernel that is read as one."""
        kernel = name in self._readings and self._readings[name][0] is Kind.CONV
        return self.is_float(name) and (kernel or len(self.base.shape(name)) == 2)

    def reading(self, name: str) -> Reading:
        """How the model reads a matrix."""
        if name in self._readings:
            return self._readings[name]
        is_table = name.removesuffix(".weight").rpartition(".")[2] in _TABLES
        return (Kind.EMBEDDING, ("in", "out")) if is_table else (Kind.LINEAR, ("out", "in"))

    def differs(self, name: str) -> bool:
        """Whether the values are others, whatever their types."""
        if not self.fits(name):
            return True
        return not np.array_equal(widened(self.base.array(name)), widened(self.tuned.array(name)))

    def difference(self, name: str) -> Array:
        """Tuned - base: float64 where one of them is, float32 otherwise."""
        before, after = widened(self.base.array(name)), widened(self.tuned.array(name))
        with np.errstate(over="ignore", invalid="ignore"):
            difference = after - before
        if not np.isfinite(difference).all():
            raise InvalidInputError(f"{name}: the difference of the two checkpoints is not finite")
        return difference

    def fingerprinted(self, target: Target) -> Target:
        """The target with the fingerprint of its base tensor."""
        return replace(target, fingerprint=target_fingerprint(target, self.base.array(target.name)))


def _matrix(
    name: str, difference: Array, pair: _Pair, truncation: Truncation, dtype: str
) -> tuple[Target, Extracted] | None:
    """A low-rank target; None where no direction stands above the rounding."""
    shape = tuple(difference.shape)
    difference = difference.reshape(shape[0], prod(shape[1:]))  # a kernel is (out, in·k…)
    noise = rounding_noise(pair.tuned.array(name).reshape(difference.shape))
    floor = _MARGIN * noise.largest
    if truncation:
        found = approximate(difference, truncation)
    else:
        found = _above_noise(difference, floor, pair.tuned.dtype(name))
    if found.largest <= floor:
        return None
    if not truncation and found.matrix.rank * sum(difference.shape) >= difference.size:
        raise UnsupportedError(
            f"{name}: {found.matrix.rank} directions of its change stand above the rounding, which is more than the "
            "whole tensor holds; say how much to keep by a rank or an energy"
        )
    kind, layout = pair.reading(name)
    like = Target(name=name, kind=kind, layout=layout, shape=shape, tensors={})
    swapped = layout == ("in", "out")
    kept = [LowRank(found.matrix.right.T, found.matrix.left.T) if swapped else found.matrix]
    target = refilled(pair.fingerprinted(like), kept, dtype)
    return target, Extracted(retained(target, kept, found.norm, found.error), noise.norm / found.norm)


def _above_noise(difference: Array, floor: float, dtype: str) -> Approximation:
    """The directions that stand above the rounding of W', and above that of the change before it was added.

    A program that merges in the type of the weights rounds every term of B·A, or once where that type has 16 bits.
    This shows only where a change is about as large as the weights; then the floor depends on the number of terms,
    and the number on the floor.

    Args:
        difference: (out, in).
        floor: of the rounding of W'.
        dtype: element type of W'.
    """
    found = approximate(difference, Truncation(), floor=floor)
    change = _MARGIN * rounding_noise(difference, dtype).largest
    seen: set[int] = set()
    while found.matrix.rank not in seen:
        seen.add(found.matrix.rank)
        terms = found.matrix.rank * _TERM if DTYPES[dtype].size > 2 else 0.0
        raised = hypot(floor, change * sqrt(1 + terms))
        if raised < 1.05 * floor:
            break
        found = approximate(difference, Truncation(), floor=raised)
    return found


def _other(name: str, pair: _Pair, dtype: str) -> tuple[Target, Extracted | None]:
    """A bias target where a vector of that name differs, else the whole values."""
    value = pair.tuned.array(name)
    if not (pair.is_float(name) and value.ndim == 1 and name.endswith("bias")):
        kept = from_array(np.ascontiguousarray(value))
        full = Target(name=name, kind=Kind.FULL, layout=(), shape=tuple(value.shape), tensors={"value": kept})
        return pair.fingerprinted(full) if pair.fits(name) else full, None
    exact = pair.difference(name).astype(np.float64)
    like = Target(name=name, kind=Kind.BIAS, layout=("out",), shape=tuple(value.shape), tensors={})
    target, retention = bias_of(pair.fingerprinted(like), exact, dtype)
    return target, Extracted(retention, rounding_noise(value[None]).norm / retention.norm)
