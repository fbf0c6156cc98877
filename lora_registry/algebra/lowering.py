"""Changes that are no product of two factors, made into one: only where somebody asks for it, since it costs.

A LoHa or LoKr change is as large as the base tensor once it is multiplied out, and so is a sparse one as a matrix.
Its singular value decomposition gives a linear or conv target of the rank that the change really has, in float64.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_registry.adapter import LAYOUTS, LOW_RANK, Kind, Layout, Target
from lora_registry.algebra.dense import approximate
from lora_registry.algebra.slices import refilled
from lora_registry.algebra.truncation import Truncation
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array, to_array
from lora_registry.ops.change import positions
from lora_registry.ops.factors import FACTORED, change_matrix

DENSE = (FACTORED - LOW_RANK) | {Kind.SPARSE}
"""The kinds that have no two factors: LoHa, LoKr and sparse."""


def lowered(target: Target, layout: Layout = ("out", "in")) -> Target:
    """The same change as a linear or conv target with factors in F64, at the rank that it has; a value stays.

    Args:
        target: of a kind in :data:`DENSE`; any other is returned as it is.
        layout: of the base tensor, which a sparse target does not state.

    Raises:
        UnsupportedError: a sparse change of a tensor that is no matrix and no kernel.
        InvalidInputError: the change is not finite.
    """
    if target.kind not in DENSE:
        return target
    assert target.shape is not None  # only tokens may leave it out
    own = target.layout or layout
    if own not in LAYOUTS[Kind.LINEAR] | LAYOUTS[Kind.CONV] or len(own) != len(target.shape):
        raise UnsupportedError(f"{target.name}: a sparse change of shape {list(target.shape)} is not that of a matrix")
    with np.errstate(over="ignore", invalid="ignore"):  # what goes wrong shows in the result, which is checked
        matrix = _dense(target)
    if not np.isfinite(matrix).all():
        raise InvalidInputError(f"{target.name}: its change is not finite; the adapter is broken")
    matrix = matrix if own.index("out") < own.index("in") else matrix.T
    kind = Kind.CONV if len(own) > 2 else Kind.LINEAR
    like = replace(
        target,
        kind=kind,
        layout=own,
        tensors={role: tensor for role, tensor in target.tensors.items() if role == "value"},
        segments=target.segments if kind is Kind.LINEAR else None,
        digests={},
    )
    return refilled(like, [approximate(matrix, Truncation()).matrix], "F64")


def _dense(target: Target) -> Array:
    """The change as the matrix that the stored tensor is, float64."""
    if target.kind is not Kind.SPARSE:
        product = change_matrix(target, np.dtype(np.float64))
        whole = np.empty(product.shape)
        product.write(0, whole)
        return whole
    assert target.shape is not None
    whole = np.zeros(target.shape)
    whole.reshape(-1)[positions(target)] = to_array(target.tensors["delta"]).astype(np.float64) * target.scale
    return whole.reshape(len(whole), -1)
