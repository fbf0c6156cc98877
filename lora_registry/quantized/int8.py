"""int8 of bitsandbytes: whole numbers, scaled by the largest of each row (Dettmers et al. 2022, LLM.int8).

Stored are ``W``, I8 (out, in), and ``SCB``, F32 (out), in the same module. Element = W · SCB · (1/127), in float32
and in this order (bitsandbytes 0.50, ``int8_vectorwise_dequant``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array
from lora_registry.quantized.weight import Quantization, Scheme, Tensors, require

UNIT = np.float32(7.874015718698502e-3)
"""1/127, to the digits that bitsandbytes has."""


@dataclass(frozen=True, slots=True, eq=False)
class Int8Weight:
    """A weight in bitsandbytes' int8.

    Attributes:
        dtype: of the model, which bitsandbytes' float32 is cast to.
        parts: names of the stored tensors.
        codes: int8, (out, in).
        scales: float32, (out,).
    """

    dtype: str
    parts: tuple[str, ...]
    codes: Array
    scales: Array

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in)."""
        return tuple(self.codes.shape)

    def rows(self, first: int, last: int) -> Array:
        """Rows of outputs."""
        result: Array = self.codes[first:last].astype(np.float32)
        result *= self.scales[first:last, np.newaxis]
        result *= UNIT
        return result


def find(tensors: Tensors, settings: Mapping[str, Json], dtype: str) -> Quantization | None:
    """The int8 weights, by the ``SCB`` beside them; None where there are none.

    Raises:
        InvalidInputError: a part is missing, or the shapes contradict each other.
        UnsupportedError: the layout is not that of rows.
    """
    del settings  # says nothing that the tensors do not say
    known = frozenset(tensors.names())
    weights = {}
    for key in sorted(name for name in known if name.endswith(".SCB")):
        module = key.removesuffix(".SCB")
        name, layout = f"{module}.weight", f"{module}.weight_format"
        codes = require(tensors, known, name, ("I8",), axes=2)
        scales = require(tensors, known, key, ("F32",), axes=1)
        if len(scales) != len(codes):
            raise InvalidInputError(f"{name}: {len(codes)} rows have {len(scales)} scales")
        parts: tuple[str, ...] = (name, key)
        if layout in known:
            if tensors.array(layout).any():
                raise UnsupportedError(f"{name}: its int8 are in a layout for one sort of GPU, not in rows")
            parts += (layout,)
        weights[name] = Int8Weight(dtype, parts, codes, scales)
    return Quantization(Scheme("int8"), weights) if weights else None
