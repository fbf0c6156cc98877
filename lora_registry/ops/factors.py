"""From the factors of a target to the matrix of its change, in the order in which the base stores the tensor.

As stored, a base tensor is a stack of matrices: a linear or embedding weight is one, a conv kernel is one of
shape (out, in·k…), experts are one for each expert. The change of each is made of products:

    ========================= ============== ============== ==================================
    stored as                 left           right          composed
    ========================= ============== ============== ==================================
    (out, in…)                s·B            A              loha: s·B1·A1 ∘ B2·A2
    (in, out)                 Aᵀ             (s·B)ᵀ         lokr: s·C1 ⊗ C2, each C whole or B·A
    ========================= ============== ============== ==================================

s multiplies the B (or C) that comes first, in float64, rounded once to the type of the computation.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lora_registry.adapter import LOW_RANK, Kind, Target
from lora_registry.ops.arrays import Array, to_array
from lora_registry.ops.matrices import Hadamard, Kronecker, Matrix, Product, Stack, Whole

FACTORED = LOW_RANK | {Kind.LOHA, Kind.LOKR}
"""The kinds whose change is a matrix made of factors; these may have a magnitude and a value."""


def scaled(target: Target, role: str, dtype: np.dtype[Any]) -> Array:
    """The tensor in ``role`` times s, multiplied in float64 and rounded once to ``dtype``."""
    with np.errstate(over="ignore"):  # infinities spread into the result, which is checked
        return (to_array(target.tensors[role]).astype(np.float64) * target.scale).astype(dtype)


def change_matrix(target: Target, dtype: np.dtype[Any]) -> Matrix:
    """The change of a factored target as the matrix (rows, columns) that the stored tensor is.

    Args:
        target: of a kind in :data:`FACTORED`; no grouped conv, whose change has no place in the kernel.
        dtype: float32 or float64, the type of the computation.
    """
    swapped = target.layout.index("in") < target.layout.index("out")

    def read(role: str, *, scale: bool = False) -> Array:
        array = scaled(target, role, dtype) if scale else to_array(target.tensors[role]).astype(dtype)
        return array if target.kind is Kind.EXPERTS else array.reshape(len(array), -1)

    def side(number: str, *, scale: bool = False) -> Matrix:
        if f"C{number}" in target.tensors:
            whole = read(f"C{number}", scale=scale)
            return Whole(whole.T if swapped else whole)
        return _product(read(f"A{number}"), read(f"B{number}", scale=scale), swapped=swapped)

    match target.kind:
        case Kind.LOHA:
            return Hadamard(side("1", scale=True), side("2"))
        case Kind.LOKR:
            return Kronecker(side("1", scale=True), side("2"))
        case Kind.EXPERTS:
            pairs = zip(read("A"), read("B", scale=True), strict=True)
            return Stack([_product(a, b, swapped=swapped) for a, b in pairs])
        case _:
            return side("", scale=True)


def _product(a: Array, b: Array, *, swapped: bool) -> Product:
    """The product b · a, or its transpose."""
    return Product(np.ascontiguousarray(a.T), np.ascontiguousarray(b.T)) if swapped else Product(b, a)
