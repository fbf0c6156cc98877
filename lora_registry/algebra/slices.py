"""The change of a low-rank target as a list of matrices in logical order, and a target made of such a list.

Linear, embedding and conv targets are one matrix (out, in·k…). Experts are one for each expert. In a grouped conv the
outputs of a group read the ranks of that group alone (spec section 5.1), so that each group is a matrix by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.algebra.core import LowRank, norm, stacked
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array, from_array, round_to, to_array


def slices(target: Target, factor: float | None = None) -> list[LowRank]:
    """The change of ``target``, a matrix for each expert or group.

    Args:
        target: of a kind in :data:`~lora_registry.adapter.LOW_RANK`; its magnitude and value are not looked at.
        factor: what B is multiplied by; the scale of the target where it is None.

    Raises:
        InvalidInputError: a factor is not finite, or becomes so.
    """
    a, b = (to_array(target.tensors[role]).astype(np.float64) for role in "AB")
    with np.errstate(over="ignore", invalid="ignore"):
        b *= target.scale if factor is None else factor
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InvalidInputError(f"{target.name}: its change is not finite; the adapter is broken")
    if target.kind is not Kind.EXPERTS:
        a = a.reshape(target.groups, len(a) // target.groups, -1)
        b = b.reshape(target.groups, len(b) // target.groups, -1)
    return [LowRank(left, right) for left, right in zip(b, a, strict=True)]


def refilled(like: Target, matrices: Sequence[LowRank], dtype: str, *, scale: float = 1.0) -> Target:
    """A target of the same base tensor as ``like`` that makes another change.

    Args:
        like: gives name, kind, layout, shape, groups, what describes the base, and the tensors beside A and B.
        matrices: as :func:`slices` gives them, all of one rank; the change is ``scale`` times these.
        dtype: safetensors name of the element type of both factors.
        scale: of the new target.

    Raises:
        InvalidInputError: the change is beyond the range of ``dtype``.
    """
    a, b = np.stack([m.right for m in matrices]), np.stack([m.left for m in matrices])
    if like.kind is not Kind.EXPERTS:
        assert like.shape is not None  # only tokens may leave it out
        kernel = like.shape[2:] if like.kind is Kind.CONV else ()
        width = a.shape[2] // int(np.prod(kernel, dtype=int))
        a = a.reshape(-1, width, *kernel)
        b = b.reshape(-1, b.shape[2], *(1 for _ in kernel))
    factors = {role: from_array(_rounded(like.name, array, dtype)) for role, array in (("A", a), ("B", b))}
    digests = {role: digest for role, digest in like.digests.items() if role not in factors}
    return replace(like, tensors={**like.tensors, **factors}, scale=scale, initial=0, digests=digests)


def _rounded(name: str, array: Array, dtype: str) -> Array:
    result = round_to(np.ascontiguousarray(array), dtype)
    if not np.isfinite(result.astype(np.float64)).all():
        raise InvalidInputError(f"{name}: its change is beyond the range of {dtype}")
    return result


def distance(matrices: Sequence[LowRank], target: Target) -> float:
    """‖X - ΔW‖ of the change that was meant and the one that ``target`` makes, Frobenius; 0 for the same factors."""
    pairs = zip(matrices, slices(target), strict=True)
    return norm(stacked([meant, made * -1.0]) for meant, made in pairs if not _same(meant, made))


def _same(one: LowRank, other: LowRank) -> bool:
    return np.array_equal(one.left, other.left) and np.array_equal(one.right, other.right)
