"""LoRA on parameters: stacked experts, whose names and axis orders are not in the keys.

PEFT wraps each targeted parameter of a module; several wrappers nest, the parameter registered first
innermost, and a key only tells the level. Each wrapper holds A as (E·r, in), expert by expert, and B as
(out, r·E), expert fastest. What "in" and "out" are has changed (``ParamWrapper``, read in the wheels of
0.17.1, 0.18.1, 0.19.0, 0.19.1 and 0.21.2); for a parameter [E, d1, d2]:

========== ============================= ==============================
PEFT       module without is_transposed  module with ``is_transposed``
========== ============================= ==============================
<= 0.18    in = d1, out = d2             in = d1, out = d2
0.19.0     in = d1, out = d2             in = d2, out = d1
>= 0.19.1  in = d2, out = d1             in = d1, out = d2
========== ============================= ==============================
"""

from __future__ import annotations

from enum import Enum

import numpy as np

from lora_registry.adapter import Layout, Tensor
from lora_registry.dtypes import DTYPES
from lora_registry.errors import UnsupportedError
from loreg_converters._peft.versions import release

EXPERT_OUT_IN: Layout = ("expert", "out", "in")
EXPERT_IN_OUT: Layout = ("expert", "in", "out")
WRITTEN_VERSION = "0.19.1"
"""The first version with the layout that is written."""

GATED = ("gate_up_proj", "down_proj")
"""The pair that transformers' experts register, in this order."""


class Era(Enum):
    """Which row of the table above holds."""

    OLD = "<= 0.18"
    V0_19_0 = "0.19.0"
    NEW = ">= 0.19.1"


def era(version: str | None) -> Era:
    """The era that a ``peft_version`` tells; without one the file is from before 0.18.0.

    Raises:
        UnsupportedError: a development version between 0.18.0 and 0.20.0, or a text that is no version.
    """
    if version is None:
        return Era.OLD
    found = release(version)
    if found is None:
        raise UnsupportedError(f"peft_version {version!r} is no version; the layout of the experts depends on it")
    if found.development and (0, 18, 0) < found.numbers <= (0, 20, 0):
        raise UnsupportedError(f"peft_version {version!r}: the layout of experts changed twice between 0.18 and 0.20")
    if found.numbers < (0, 19, 0):
        return Era.OLD
    return Era.V0_19_0 if found.numbers == (0, 19, 0) else Era.NEW


def expert_layout(
    when: Era, *, transposed: bool | None, in_out: bool | None = None, labels: bool | None = None
) -> tuple[Layout, bool]:
    """The axis order in which the base stores a stack of experts, and whether that is certain.

    Args:
        when: the era of the file.
        transposed: whether the base's module sets ``is_transposed``, if known.
        in_out: whether the base stores (expert, in, out), if known; Llama 4 does and does not say so.
        labels: whether what the factors call in and out is what the layer reads and writes, if known.
    """
    if in_out is not None and labels is not None:
        # Both ends are known: no version is needed, and a base without the attribute does no harm.
        return (EXPERT_OUT_IN if in_out != labels else EXPERT_IN_OUT), True
    swapped = bool(transposed) == (when is Era.V0_19_0)
    if when is Era.OLD:
        return EXPERT_IN_OUT, True
    return (EXPERT_OUT_IN if swapped else EXPERT_IN_OUT), transposed is not None


def gated_labels(gate_up: tuple[int, int], down: tuple[int, int]) -> bool | None:
    """Whether the factors of a gated pair are labeled as the layer computes.

    A gated layer maps H to 2·I and I back to H, so the shapes of both together tell.

    Args:
        gate_up: (out, in) of the first, as labeled.
        down: (out, in) of the second.

    Returns:
        True or False; None where the shapes are those of no gated layer.
    """
    if gate_up[1] == down[0] and gate_up[0] == 2 * down[1]:
        return True
    if gate_up[0] == down[1] and gate_up[1] == 2 * down[0]:
        return False
    return None


def unpack(a: Tensor, b: Tensor, experts: int) -> tuple[Tensor, Tensor]:
    """(E·r, in) and (out, r·E) as (E, r, in) and (E, out, r). B is copied, A is not."""
    rank = a.shape[0] // experts
    return a.with_shape(experts, rank, a.shape[1]), _permuted(b, (b.shape[0], rank, experts), (2, 0, 1))


def pack(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`unpack`."""
    experts, rank, inner = a.shape
    stacked = _permuted(b, b.shape, (1, 2, 0))
    return a.with_shape(experts * rank, inner), stacked.with_shape(b.shape[1], rank * experts)


def exchanged(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Factors of the transposed change: (B·A)^T = A^T·B^T, so each takes the other's place."""
    return _permuted(b, b.shape, (0, 2, 1)), _permuted(a, a.shape, (0, 2, 1))


def _permuted(tensor: Tensor, shape: tuple[int, ...], axes: tuple[int, ...]) -> Tensor:
    """The tensor under another shape with its axes in another order, whatever its elements are."""
    unsigned = f"u{DTYPES[tensor.dtype].size}"
    array = np.frombuffer(tensor.data, dtype=unsigned).reshape(shape).transpose(axes)
    return Tensor(tensor.dtype, array.shape, memoryview(array.tobytes()))
