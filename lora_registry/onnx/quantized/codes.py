"""A matrix as runtimes keep it quantized: codes in blocks, of which each has a scale and a zero point.

An element is scale · (code - zero point), in float32, as ONNX's DequantizeLinear and ONNX Runtime's MatMulNBits define
it. A changed matrix is encoded by the rules of ``spec/merging.md`` (Q-002 to Q-004); new scales are those that
onnxruntime 1.32's own quantizers would choose:

========= ================================================================================== =========================
rule      scale                                                                              zero point
========= ================================================================================== =========================
EXTREME   the element farthest from 0, over the least code; MLAS ``q4_dq.cpp``               the one that is there
SYMMETRIC the largest absolute value, over the largest code; ``quantization/quant_utils.py`` the one that is there
AFFINE    the range with 0 in it, over the number of steps                                   rounded, where 0 is
KEPT      the one that is there: zero points that are floats were trained or calibrated      the one that is there
========= ================================================================================== =========================
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array, round_to
from lora_registry.quantized.encoding.groups import Affine, GridGroups, closer, divided
from lora_registry.quantized.grid import Grid

_EPSILON = {"F8_E4M3": np.float32(2**-3), "F8_E5M2": np.float32(2**-2)}
_SMALLEST_NORMAL = {"F8_E4M3": np.float32(2**-6), "F8_E5M2": np.float32(2**-14)}


class Rule(StrEnum):
    """How a quantizer chooses scales and zero points."""

    EXTREME = "extreme"
    SYMMETRIC = "symmetric"
    AFFINE = "affine"
    KEPT = "kept"


@dataclass(frozen=True, slots=True, eq=False)
class Codes:
    """One quantized matrix.

    Attributes:
        codes: (rows, columns): int16; of float8, float32.
        scales: float32, one a block.
        zeros: float32, one a block; zeros where there are none.
        low: the least code.
        high: the largest code.
        rule: how new scales are chosen.
        scale_dtype: element type of the stored scales, safetensors' name.
        float8: element type of codes that are floats; None for integers.
    """

    codes: Array
    scales: Grid
    zeros: Grid
    low: float
    high: float
    rule: Rule
    scale_dtype: str = "F32"
    float8: str | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def steps(self) -> Array:
        """Distance from each element to the next code, float32 (rows, columns)."""
        scales: Array = np.abs(self.scales.rows(0, self.shape[0]))
        if self.float8 is None:
            return scales
        return scales * np.maximum(np.abs(self.codes), _SMALLEST_NORMAL[self.float8]) * _EPSILON[self.float8]

    def values(self) -> Array:
        """What the codes stand for: float32 (rows, columns)."""
        rows = self.shape[0]
        values: Array = (self.codes.astype(np.float32) - self.zeros.rows(0, rows)) * self.scales.rows(0, rows)
        return values

    def changed(self, wanted: Array) -> Codes:
        """The codes of another matrix; blocks that it leaves alone keep theirs.

        Args:
            wanted: float32 (rows, columns).

        Raises:
            InvalidInputError: a value is not finite, or a scale would not be.
        """
        if not np.isfinite(wanted).all():
            raise InvalidInputError("holds values that are not finite, and these cannot be quantized")
        groups, before = GridGroups(self.scales, 0, self.shape[0]), self.values()
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            made = self._floats(groups, before, wanted) if self.float8 else self._integers(groups, before, wanted)
        if not np.isfinite(made.scales).all():
            raise InvalidInputError(f"the merged weight needs scales beyond the range of {self.scale_dtype}")
        codes = made.codes.astype(self.codes.dtype)
        return replace(
            self,
            codes=codes,
            scales=replace(self.scales, values=made.scales),
            zeros=replace(self.zeros, values=made.zeros),
        )

    def _integers(self, groups: GridGroups, before: Array, wanted: Array) -> Affine:
        own = Affine(self.scales.values, self.zeros.values, self.codes)
        low, high = int(self.low), int(self.high)
        if self.rule is Rule.KEPT:
            return closer(groups, own, (own.scales, own.zeros), before, wanted, low, high)
        fresh = self._fresh(groups.reduce(wanted, np.minimum), groups.reduce(wanted, np.maximum))
        if own.scales.size > 1:
            return closer(groups, own, fresh, before, wanted, low, high)
        reach = np.sort((np.array([low - 0.5, high + 0.5]) - own.zeros[0, 0]) * own.scales[0, 0])
        if reach[0] <= wanted.min() and wanted.max() <= reach[1]:
            return closer(groups, own, (own.scales, own.zeros), before, wanted, low, high)
        return Affine(*fresh, divided(groups, wanted, *fresh, low, high)[0])

    def _fresh(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Scales and zero points for blocks that go from ``low`` to ``high``."""
        zeros = self.zeros.values
        if self.rule is Rule.AFFINE:
            low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
            scales = self._rounded((high - low) / np.float32(self.high - self.low))
            offset = np.divide(low, scales, out=np.zeros_like(scales), where=scales != 0)
            return scales, np.clip(np.rint(np.float32(self.low) - offset), self.low, self.high)
        if self.rule is Rule.EXTREME:
            extreme = np.where(np.abs(high) > np.abs(low), high, low)
            return self._rounded(extreme / (np.float32(self.low) - zeros)), zeros
        return self._rounded(np.maximum(-low, high) / np.float32(self.high)), zeros

    def _floats(self, groups: GridGroups, before: Array, wanted: Array) -> Affine:
        assert self.float8 is not None
        own, zeros = self.scales.values, self.zeros.values
        fresh = self._rounded(groups.reduce(np.abs(wanted), np.maximum) / np.float32(self.high))
        touched = groups.reduce((before != wanted).astype(np.uint8), np.maximum) > 0
        kept, kept_error = self._nearest(groups, wanted, own)
        made, made_error = self._nearest(groups, wanted, fresh)
        beyond = groups.reduce(np.abs(wanted), np.maximum) > own * np.float32(self.high)
        anew = touched & (beyond if own.size == 1 else made_error < kept_error)
        codes = np.where(groups.spread(anew), made, np.where(groups.spread(touched), kept, self.codes))
        return Affine(np.where(anew, fresh, own), zeros, codes)

    def _nearest(self, groups: GridGroups, wanted: Array, scales: Array) -> tuple[Array, Array]:
        """The nearest float8 with these scales, and the squared error of each block."""
        assert self.float8 is not None
        spread = groups.spread(scales)
        divided_by = np.divide(wanted, spread, out=np.zeros_like(wanted), where=spread != 0)
        codes = round_to(np.clip(divided_by, self.low, self.high), self.float8).astype(np.float32)
        difference = codes * spread - wanted
        return codes, groups.reduce(difference * difference, np.add)

    def _rounded(self, scales: Array) -> Array:
        return round_to(np.ascontiguousarray(scales, np.float32), self.scale_dtype).astype(np.float32)
