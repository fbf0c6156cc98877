"""Where dense matrices are decomposed and elected: numpy here, or a device that was asked for.

As with numpy's own ``errstate``, a context says so for everything that is called in it, since the choice changes no
result but for the last digits of float32 and float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from lora_registry.errors import MissingPackageError
from lora_registry.ops.arrays import Array

Triple = tuple[Array, Array, Array]
"""u, values and vt of a singular value decomposition, float64."""


class Dense(Protocol):
    """A matrix (out, in) that is there as a whole."""

    def square(self) -> float:
        """‖M‖², Frobenius, summed in float64."""

    def drawn(self, wanted: int) -> Triple:
        """The ``wanted`` largest singular values from a random range, the same for the same matrix."""

    def decomposed(self) -> Triple:
        """All singular values, in float64."""

    def distance(self, left: Array, right: Array) -> float:
        """‖M - left · right‖, Frobenius."""


class DeviceArithmetic(Protocol):
    """A device that computes what costs most."""

    def hold(self, matrix: Array) -> Dense:
        """``matrix``, copied to the device."""

    def product_svd(self, left: Array, right: Array, check: Callable[[float], None]) -> Triple:
        """The decomposition of left · right by way of its core; ``check`` sees the core's largest magnitude first."""

    def ties(
        self,
        changes: Sequence[Array],
        kept: Sequence[int] | Sequence[float],
        weights: Sequence[float],
        *,
        by_weight: bool,
        sign_of_zero: int,
    ) -> Array:
        """Trimmed and elected: see :func:`lora_registry.algebra.election.ties`.

        Args:
            changes: float32, of one shape.
            kept: for each, how many of its largest elements stay (an int), or from which magnitude on (a float).
            weights: for each.
            by_weight: weights count in the election and in the average.
            sign_of_zero: of elements whose sum is zero.
        """


_DEVICE: ContextVar[DeviceArithmetic | None] = ContextVar("device of dense matrices", default=None)


def device() -> DeviceArithmetic | None:
    """The device to compute on; None for numpy."""
    return _DEVICE.get()


@contextmanager
def computed_on(name: str) -> Iterator[None]:
    """Compute on the device of that name in the block: ``cpu`` or ``cuda``.

    Raises:
        MissingPackageError: a device needs torch, which is not installed.
        MachineError: there is no such device, or it failed.
    """
    if name == "cpu":
        yield
        return
    try:
        from lora_registry.device.dense import opened
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError("torch", "torch") from error
    with opened() as found:
        token = _DEVICE.set(found)
        try:
            yield
        finally:
            _DEVICE.reset(token)
