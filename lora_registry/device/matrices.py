"""The matrices of :mod:`lora_registry.ops.matrices` on a device: each gives a run of its rows when it is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from lora_registry.device.elements import from_numpy
from lora_registry.ops import matrices


class Matrix(Protocol):
    """A matrix that is never made whole."""

    def write(self, start: int, out: torch.Tensor) -> None:
        """Write the rows from ``start`` into ``out`` (n, columns), float32 or float64; n tells how many."""


def on_device(matrix: matrices.Matrix, device: torch.device) -> Matrix:
    """The factors of ``matrix`` copied to ``device``, composed in the same way.

    Raises:
        TypeError: a matrix of another class.
    """
    match matrix:
        case matrices.Whole():
            return _Whole(from_numpy(matrix.array, device))
        case matrices.Product():
            return _Product(from_numpy(matrix.left, device), from_numpy(matrix.right, device))
        case matrices.Hadamard():
            return _Hadamard(on_device(matrix.first, device), on_device(matrix.second, device))
        case matrices.Kronecker():
            return _Kronecker(_whole(matrix.first, device), _whole(matrix.second, device))
        case matrices.Stack():
            height = matrix.shape[0] // len(matrix.parts)
            return _Stack([on_device(part, device) for part in matrix.parts], height)
    raise TypeError(f"no matrix of class {type(matrix).__name__} is known here")


def _whole(matrix: matrices.Matrix, device: torch.device) -> torch.Tensor:
    """All rows of one side of a Kronecker product, which is as large as a factor."""
    if isinstance(matrix, matrices.Whole):
        return from_numpy(matrix.array, device)
    assert isinstance(matrix, matrices.Product), "a side is whole, or a product of two factors"
    return from_numpy(matrix.left, device) @ from_numpy(matrix.right, device)


class _Whole:
    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def write(self, start: int, out: torch.Tensor) -> None:
        out.copy_(self._tensor[start : start + len(out)])


class _Product:
    def __init__(self, left: torch.Tensor, right: torch.Tensor) -> None:
        self._left, self._right = left, right

    def write(self, start: int, out: torch.Tensor) -> None:
        torch.mm(self._left[start : start + len(out)], self._right, out=out)


class _Hadamard:
    def __init__(self, first: Matrix, second: Matrix) -> None:
        self._first, self._second = first, second

    def write(self, start: int, out: torch.Tensor) -> None:
        self._first.write(start, out)
        rows = torch.empty_like(out)
        self._second.write(start, rows)
        out.mul_(rows)


class _Kronecker:
    """Row i1·n + i2 of first ⊗ second, ``second`` having n rows, is the outer product of row i1 and row i2."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor) -> None:
        self._first, self._second = first, second

    def write(self, start: int, out: torch.Tensor) -> None:
        rows = torch.arange(start, start + len(out), device=out.device)
        height = len(self._second)
        outer = self._first.index_select(0, rows.div(height, rounding_mode="floor"))
        inner = self._second.index_select(0, rows.remainder(height))
        torch.mul(outer[:, :, None], inner[:, None, :], out=out.view(len(out), outer.shape[1], inner.shape[1]))


class _Stack:
    def __init__(self, parts: Sequence[Matrix], height: int) -> None:
        self._parts, self._height = parts, height

    def write(self, start: int, out: torch.Tensor) -> None:
        done = 0
        while done < len(out):
            part, inside = divmod(start + done, self._height)
            rows = out[done : done + self._height - inside]
            self._parts[part].write(inside, rows)
            done += len(rows)
