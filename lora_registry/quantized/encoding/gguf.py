"""The tensors of a GGUF file, written again in the element types that they have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lora_registry.ops.arrays import Array, round_to
from lora_registry.quantized.encoding import gguf_blocks as small
from lora_registry.quantized.encoding import gguf_k_blocks as large
from lora_registry.quantized.encoding.encoder import Independent, Piece, squared_error
from lora_registry.quantized.gguf_file import GgufWeight


@dataclass(frozen=True, slots=True)
class _Ways:
    """The two ways to encode blocks.

    Attributes:
        fresh: values, float32 (blocks, elements), to blocks, uint8 (blocks, bytes).
        kept: blocks and values to blocks with the same scales.
    """

    fresh: Callable[[Array], Array]
    kept: Callable[[Array, Array], Array]


_WAYS = {
    "Q4_0": _Ways(small.fresh_q4_0, small.kept_q4_0),
    "Q4_1": _Ways(small.fresh_q4_1, small.kept_q4_1),
    "Q5_0": _Ways(small.fresh_q5_0, small.kept_q5_0),
    "Q5_1": _Ways(small.fresh_q5_1, small.kept_q5_1),
    "Q8_0": _Ways(small.fresh_q8_0, small.kept_q8_0),
    "Q2_K": _Ways(large.fresh_q2_k, large.kept_q2_k),
    "Q3_K": _Ways(large.fresh_q3_k, large.kept_q3_k),
    "Q4_K": _Ways(large.fresh_q4_k, large.kept_q4_k),
    "Q5_K": _Ways(large.fresh_q5_k, large.kept_q5_k),
    "Q6_K": _Ways(large.fresh_q6_k, large.kept_q6_k),
}


class GgufEncoder(Independent):
    """Encodes a tensor of a GGUF file; see :class:`~lora_registry.quantized.encoding.encoder.Encoder`."""

    def __init__(self, weight: GgufWeight) -> None:
        self._weight = weight

    @property
    def name(self) -> str:
        """The name that ggml has for the element type."""
        return self._weight.type.name

    @property
    def parts(self) -> tuple[str, ...]:
        """The one tensor that it is."""
        return self._weight.parts

    @property
    def step(self) -> int:
        """A row; or of rows in another order than the file's, as many as lie together there."""
        order = self._weight.order
        if order is None:
            return 1
        closed = np.maximum.accumulate(order) == np.arange(len(order))
        return int(closed.argmax()) + 1

    def encode(self, first: int, last: int, before: Array, wanted: Array) -> tuple[list[Piece], Array]:
        """Rows as the weight has them."""
        weight, type_ = self._weight, self._weight.type
        own = weight.blocks[first:last] if weight.order is None else weight.blocks[weight.order[first:last]]
        stored = np.ascontiguousarray(own).reshape(-1, type_.size)
        values = wanted.reshape(-1, type_.elements)
        touched = (before.reshape(values.shape) != values).any(axis=1)
        if type_.elements == 1:
            made = round_to(np.ascontiguousarray(values), type_.dtype).reshape(-1, 1).view(np.uint8)
            blocks = np.where(touched[:, None], made, stored)
        else:
            blocks = _closer(_WAYS[type_.name], self._weight.type.decode, stored, values.astype(np.float32), touched)
        rows = blocks.reshape(len(own), -1)
        shown = replace(weight, shape=wanted.shape, blocks=rows, order=None).rows(0, len(rows))
        begin = first
        if weight.order is not None:
            begin = int(weight.order[first:last].min())
            rows = rows[np.argsort(weight.order[first:last])]
        return [Piece(weight.name, begin * rows.shape[1], rows)], shown


def _closer(ways: _Ways, decode: Callable[[Array], Array], stored: Array, values: Array, touched: Array) -> Array:
    """Stored blocks, of which those that are touched are encoded in the way that comes closer to the values."""
    if not touched.any():
        return stored
    blocks = stored.copy()
    wanted = values[touched]
    kept = ways.kept(stored[touched], wanted)
    fresh = ways.fresh(wanted)
    anew = squared_error(decode(fresh), wanted) < squared_error(decode(kept), wanted)
    blocks[touched] = np.where(anew[:, None], fresh, kept)
    return blocks
