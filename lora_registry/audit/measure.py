"""One pass over the numbers of one target. Tensors are read in blocks; what stays is a few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np

from lora_registry.adapter import Kind, Target, Tensor
from lora_registry.audit.spectrum import Spectrum, spectra
from lora_registry.dtypes import DTYPES
from lora_registry.ops.arrays import to_array
from lora_registry.ops.factors import FACTORED

_BLOCK = 1 << 20  # elements widened at a time


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at every element of a tensor told.

    Attributes:
        elements: how many there are.
        nonfinite: how many are NaN or infinite.
        zero: whether every element is zero.
    """

    elements: int
    nonfinite: int
    zero: bool


@dataclass(frozen=True, slots=True)
class Measure:
    """The numbers of one target.

    Attributes:
        target: which.
        scans: role to what was seen in that tensor.
        spectra: of the change, one for each expert; empty where it has no factors, or they are not finite, or
            too many (:func:`~lora_registry.audit.spectrum.spectra`).
    """

    target: Target
    scans: Mapping[str, Scan]
    spectra: tuple[Spectrum, ...]

    @property
    def factors(self) -> tuple[str, ...]:
        """The roles of the factors, B before A; none where the change has no factors."""
        return factors(self.target)

    @property
    def finite(self) -> bool:
        """Whether every tensor is finite."""
        return not any(scan.nonfinite for scan in self.scans.values())

    @property
    def norm(self) -> float | None:
        """‖ΔW‖ over all experts, Frobenius; None where there is no spectrum."""
        if not self.spectra:
            return None
        largest = max(spectrum.norm for spectrum in self.spectra)
        if largest in (0.0, inf):
            return largest
        return largest * sqrt(sum((spectrum.norm / largest) ** 2 for spectrum in self.spectra))

    @property
    def dead(self) -> bool:
        """Whether the target provably changes nothing, whatever the base holds."""
        if self.target.kind in (Kind.BIAS, Kind.SPARSE):
            return self.scans["delta"].zero or self.target.scale == 0.0
        if not self.factors or len(self.factors) < len(self.scans):
            return False  # whether a magnitude or a value changes anything depends on the base
        return bool(self.spectra) and all(spectrum.rank == 0 for spectrum in self.spectra)


def measure(target: Target) -> Measure:
    """Look at every element of ``target``, and at the spectrum of its change where that is finite.

    Args:
        target: sound by the format's rules.
    """
    scans = {role: scan(tensor) for role, tensor in target.tensors.items()}
    roles = factors(target)
    usable = bool(roles) and not any(scans[role].nonfinite for role in roles)
    return Measure(target, scans, spectra(target) if usable else ())


def factors(target: Target) -> tuple[str, ...]:
    """The roles of the factors of ``target``, B before A; none where its change has no factors."""
    roles = target.tensors.keys() - {"magnitude", "value"} if target.kind in FACTORED else ()
    return tuple(sorted(roles, reverse=True))


def scan(tensor: Tensor) -> Scan:
    """Look at every element of ``tensor``, in bounded memory."""
    flat = to_array(tensor).reshape(-1)
    floating = DTYPES[tensor.dtype].floating
    narrow = floating and tensor.dtype not in ("F32", "F64")
    nonfinite, zero = 0, True
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        if narrow:
            block = block.astype(np.float32)  # exact, and much faster to look at
        zero = zero and not block.any()
        if floating:
            nonfinite += block.size - int(np.count_nonzero(np.isfinite(block)))
    return Scan(flat.size, nonfinite, zero)
