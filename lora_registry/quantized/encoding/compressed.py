"""The integers of compressed-tensors written again, with the scales of its ``calculate_qparams`` (0.20).

Without zero points, the element farthest from 0 becomes half a range of codes; with them, a group from its least to its
largest element, 0 among them, is divided into equal steps. Where one scale is for the whole weight, it is kept while it
reaches far enough. The float8 of compressed-tensors are written by :mod:`~.encode_fp8`.
"""

from __future__ import annotations

import numpy as np

from lora_registry.ops.arrays import Array, round_to
from lora_registry.quantized.compressed import CompressedWeight
from lora_registry.quantized.encoding.encoder import Piece
from lora_registry.quantized.encoding.groups import Affine, GridGroups, closer, divided
from lora_registry.quantized.grid import Grid
from lora_registry.quantized.packing import pack

_TOGETHER = 32  # rows: as many zero points as are sure to end with a word


class CompressedEncoder:
    """Encodes integers; see :class:`~lora_registry.quantized.encoding.encoder.Encoder`."""

    name = "compressed-tensors"

    def __init__(self, weight: CompressedWeight) -> None:
        self._weight = weight
        bits = weight.bits or 8
        self._low, self._high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
        self._range: tuple[float, float] | None = None

    @property
    def parts(self) -> tuple[str, ...]:
        """Elements and scales, and zero points where there are some."""
        names = self._weight.parts
        return names[:2] if self._weight.zeros is None else (*names[:2], names[-1])

    @property
    def step(self) -> int:
        """Whole blocks, and whole words of zero points."""
        step = 1 if self.needs_range else self._weight.scales.step
        return step if self._weight.zeros is None else int(np.lcm(step, _TOGETHER))

    @property
    def needs_range(self) -> bool:
        """One scale is for all rows."""
        return self._weight.scales.is_single

    def prepare(self) -> None:
        """Hold the zero points, which may be packed along the outputs."""
        if self._weight.stored_zeros is not None and self._weight.zeros is not None:
            self._stored_zeros = self._weight.stored_zeros.copy()
            self._zeros = np.array(self._weight.zeros.values, np.float32)

    def cover(self, low: float, high: float) -> None:
        """What the one scale has to cover."""
        self._range = low, high

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows of outputs."""
        weight = self._weight
        grid = Grid(wanted.shape, wanted.shape, weight.scales.values[:1]) if self.needs_range else weight.scales
        run = (0, len(wanted)) if self.needs_range else (first, last)
        groups, within = GridGroups(grid, *run), grid.within(*run)
        scales = weight.scales.values[within]
        zeros = np.zeros_like(scales) if weight.zeros is None else weight.zeros.values[within]
        own = Affine(scales, zeros, weight.codes(first, last).astype(np.int16))
        if self._range is None:
            rows = wanted.astype(np.float32, copy=False)
            fresh = self._fresh(groups.reduce(rows, np.minimum), groups.reduce(rows, np.maximum))
            new = closer(groups, own, fresh, before, wanted, self._low, self._high)
        else:
            new = self._single(groups, own, before, wanted)
        packed = new.codes.astype(np.int8)
        if weight.bits:
            packed = pack((new.codes - self._low).astype(np.uint8), weight.bits)
        values = round_to(np.ascontiguousarray(new.scales), weight.scale_dtype)
        pieces = [
            Piece(weight.parts[0], first * packed.itemsize * packed.shape[1], packed),
            Piece(weight.parts[1], within.start * values.itemsize * values.shape[1], values),
        ]
        if weight.zeros is not None:
            self._zeros[within] = new.zeros
        shown = (new.codes - groups.spread(new.zeros)) * groups.spread(new.scales)
        return pieces, shown.astype(np.float32)

    def rest(self) -> list[Piece]:
        """The zero points, where there are some."""
        weight = self._weight
        if weight.zeros is None:
            return []
        if np.array_equal(self._zeros, weight.zeros.values):
            return [Piece(weight.parts[-1], 0, self._stored_zeros)]
        if weight.bits and self._stored_zeros.dtype == np.int32:
            fields = (self._zeros[: weight.shape[0]] - self._low).astype(np.uint8)
            self._stored_zeros = pack(fields.T, weight.bits).T
        else:
            self._stored_zeros = self._zeros.astype(self._stored_zeros.dtype)
        return [Piece(weight.parts[-1], 0, self._stored_zeros)]

    def _single(self, groups: GridGroups, own: Affine, before: Array, wanted: Array) -> Affine:
        """With the one scale that is there, or where it does not reach far enough with that of the whole range."""
        assert self._range is not None
        reach = (np.array([self._low - 0.5, self._high + 0.5]) - own.zeros[0, 0]) * own.scales[0, 0]
        if reach[0] <= self._range[0] and self._range[1] <= reach[1]:
            return closer(groups, own, (own.scales, own.zeros), before, wanted, self._low, self._high)
        low, high = (np.full((1, 1), each, np.float32) for each in self._range)
        scales, zeros = self._fresh(low, high)
        codes, _ = divided(groups, wanted.astype(np.float32, copy=False), scales, zeros, self._low, self._high)
        return Affine(scales, zeros, codes)

    def _fresh(self, low: Array, high: Array) -> tuple[Array, Array]:
        """Scales and zero points for groups that go from ``low`` to ``high``."""
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        steps = np.float32(self._high - self._low)
        symmetric = self._weight.zeros is None
        ranges = np.maximum(-low, high) * np.float32(2) if symmetric else high - low
        scales = round_to((ranges / steps).astype(np.float32), self._weight.scale_dtype).astype(np.float32)
        if symmetric:
            return scales, np.zeros_like(scales)
        zeros = np.zeros_like(scales)
        np.divide(low, scales, out=zeros, where=scales != 0)
        return scales, np.clip(np.rint(np.float32(self._low) - zeros), self._low, self._high)
