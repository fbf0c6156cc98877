"""Dense matrices on a device: singular values, and the election of signs (TIES), by the steps of ``algebra``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from lora_registry.device.elements import from_numpy
from lora_registry.device.failures import device_errors
from lora_registry.device.opening import open_cuda
from lora_registry.device.precision import full_precision
from lora_registry.ops.arrays import Array

SPARE = 10
"""Directions drawn beyond those that are wanted (Halko, Martinsson and Tropp 2011, SIAM Review 53)."""

ROUNDS = 4
"""Of power iteration."""

_BLOCK = 1 << 24  # elements that are widened to float64 together


@contextmanager
def opened() -> Iterator[DenseArithmetic]:
    """The GPU, for matrices.

    Raises:
        MachineError: there is none that works; or, in the block, it failed.
    """
    device = open_cuda()
    with full_precision(), device_errors(device):
        yield DenseArithmetic(device)


class DenseArithmetic:
    """What :class:`lora_registry.algebra.arithmetic.DeviceArithmetic` asks for, by torch.

    Args:
        device: where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def hold(self, matrix: Array) -> DenseMatrix:
        """``matrix``, copied to the device."""
        return DenseMatrix(from_numpy(matrix, self._device))

    def product_svd(self, left: Array, right: Array, check: Callable[[float], None]) -> tuple[Array, Array, Array]:
        """The decomposition of left · right from the QR of both factors (Golub and Van Loan, section 5.5)."""
        q1, r1 = torch.linalg.qr(from_numpy(left, self._device))
        q2, r2 = torch.linalg.qr(from_numpy(right.T, self._device))
        core = r1 @ r2.T
        check(float(core.abs().amax()) if core.numel() else 0.0)
        u, values, vt = torch.linalg.svd(core, full_matrices=False)
        return _arrays(q1 @ u, values, vt @ q2.T)

    def ties(
        self,
        changes: Sequence[Array],
        kept: Sequence[int] | Sequence[float],
        weights: Sequence[float],
        *,
        by_weight: bool,
        sign_of_zero: int,
    ) -> Array:
        """Each change with its largest elements alone; of these, what agrees with the elected sign, averaged."""
        trimmed = [_trimmed(from_numpy(each, self._device), keep) for each, keep in zip(changes, kept, strict=True)]
        total = torch.zeros_like(trimmed[0])
        for change, weight in zip(trimmed, weights, strict=True):
            total += change * weight if by_weight else change
        sign = total.sign()
        sign[total == 0] = sign_of_zero
        result, divisor = torch.zeros_like(total), torch.zeros_like(total)
        for change, weight in zip(trimmed, weights, strict=True):
            term = change * weight
            agrees = (term if by_weight else change) * sign > 0
            result += term * agrees
            divisor += agrees.to(total.dtype) * (weight if by_weight else 1)
        divisor[divisor == 0] = 1
        elected: Array = (result / divisor).cpu().numpy()
        return elected


def _trimmed(change: torch.Tensor, keep: float) -> torch.Tensor:
    """Zeros but for the ``keep`` largest (an int), the first ones among equals, or from ``keep`` on (a float)."""
    magnitudes = change.abs().reshape(-1)
    if isinstance(keep, float):
        kept = magnitudes >= keep
    elif keep >= change.numel():
        return change
    elif keep == 0:
        return torch.zeros_like(change)
    else:
        last = magnitudes.kthvalue(change.numel() - keep + 1).values
        kept = magnitudes > last
        equal = (magnitudes == last).nonzero().reshape(-1)
        kept[equal[: keep - int(kept.sum())]] = True
    return change * kept.view(change.shape)


class DenseMatrix:
    """What :class:`lora_registry.algebra.arithmetic.Dense` asks for, by torch.

    Args:
        matrix: (out, in), float32 or float64, finite.
    """

    def __init__(self, matrix: torch.Tensor) -> None:
        self._matrix = matrix

    def square(self) -> float:
        """‖M‖²."""
        return float(sum(block.double().square().sum() for _, block in self._blocks()))

    def decomposed(self) -> tuple[Array, Array, Array]:
        """All singular values, in float64."""
        return _arrays(*torch.linalg.svd(self._matrix.double(), full_matrices=False))

    def drawn(self, wanted: int) -> tuple[Array, Array, Array]:
        """The largest singular values, from the range that numpy draws too."""
        flat = self._matrix.shape[0] < self._matrix.shape[1]
        wide = self._matrix.T if flat else self._matrix
        random = np.random.default_rng(0).standard_normal((wide.shape[1], wanted + SPARE))
        sketch = wide @ from_numpy(random, wide.device).to(wide.dtype)
        for _ in range(ROUNDS):
            sketch = wide @ torch.linalg.qr(wide.T @ torch.linalg.qr(sketch)[0])[0]
        basis = torch.linalg.qr(sketch.double())[0]
        u, values, vt = torch.linalg.svd(basis.T.to(wide.dtype) @ wide, full_matrices=False)
        u, values, vt = (basis @ u.double())[:, :wanted], values[:wanted], vt[:wanted]
        return _arrays(vt.T, values, u.T) if flat else _arrays(u, values, vt)

    def distance(self, left: Array, right: Array) -> float:
        """‖M - left · right‖."""
        first, second = (from_numpy(side, self._matrix.device) for side in (left, right))
        square = torch.zeros((), dtype=torch.float64, device=self._matrix.device)
        for start, block in self._blocks():
            square += (block.double() - first[start : start + len(block)] @ second).square().sum()
        return float(square.sqrt())

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        step = max(1, _BLOCK // max(1, self._matrix.shape[1]))
        for start in range(0, len(self._matrix), step):
            yield start, self._matrix[start : start + step]


def _arrays(u: torch.Tensor, values: torch.Tensor, vt: torch.Tensor) -> tuple[Array, Array, Array]:
    first, second, third = (each.double().contiguous().cpu().numpy() for each in (u, values, vt))
    return first, second, third
