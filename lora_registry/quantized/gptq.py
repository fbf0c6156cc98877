"""GPTQ: groups of inputs share a scale and a zero point for each output (Frantar et al. 2022).

What is stored in a module, with ``bits`` bits an element and dense packing along one axis::

    qweight     I32 (in · bits / 32, out)       packed along the inputs
    qzeros      I32 (groups, out · bits / 32)   packed along the outputs
    scales      F16 or BF16 (groups, out)
    g_idx       I32 (in,)                       group of each input; without it, groups follow each other

Element = scale · (q - zero). In the first form of the format every zero point is stored as one less, and is got back by
an addition to the whole word (GPTQModel 7.7, ``convert_gptq_v1_to_v2_format_module``); ``gptq_v2`` has it as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.arrays import Array
from lora_registry.quantized.packing import pack, unpack
from lora_registry.quantized.weight import Quantization, Scheme, Tensors, integer, require

_FORMATS = ("gptq", "gptq_v2")
_BITS = (2, 3, 4, 8)
_FIELDS = 32  # as many fields as are sure to end with a word


@dataclass(frozen=True, slots=True, eq=False)
class GptqWeight:
    """A weight in GPTQ's format.

    Attributes:
        shape: (out, in).
        dtype: of the scales, and of what GPTQ's kernels dequantize to.
        parts: names of the stored tensors.
        bits: of an element.
        first_form: whether zero points are stored as one less.
        codes: ``qweight``.
        zeros: ``qzeros``.
        scales: (groups, out).
        groups: group of each input, (in,).
    """

    shape: tuple[int, int]
    dtype: str
    parts: tuple[str, ...]
    bits: int
    first_form: bool
    codes: Array
    zeros: Array
    scales: Array
    groups: Array

    def rows(self, first: int, last: int) -> Array:
        """Rows of outputs, which are columns of what is stored."""
        codes = unpack(self.codes[:, first:last].T, self.bits, self.shape[1]).astype(np.int16)
        codes -= self.zero_points(first, last).T[:, self.groups]
        scales: Array = self.scales[:, first:last].astype(np.float32).T
        return codes * scales[:, self.groups]

    def zero_points(self, first: int, last: int) -> Array:
        """The zero points of some outputs: int16, (groups, last - first)."""
        begin = first // _FIELDS
        words = self.zeros[:, begin * self.bits : -(-last // _FIELDS) * self.bits]
        if self.first_form and self.bits != 3:
            words = words.view(np.uint32) + np.uint32(0xFFFFFFFF // ((1 << self.bits) - 1))  # one in each field
        fields = unpack(words, self.bits, last - begin * _FIELDS)[:, first - begin * _FIELDS :].astype(np.int16)
        return (fields + 1) & 7 if self.first_form and self.bits == 3 else fields

    def packed_zeros(self, zeros: Array) -> Array:
        """The inverse: zero points, uint8 (groups, outputs), as words; the outputs begin with a word."""
        if self.first_form and self.bits == 3:
            return pack((zeros - 1) & 7, 3)
        words = pack(zeros, self.bits)
        if self.first_form:
            ones = np.uint32(0xFFFFFFFF // ((1 << self.bits) - 1))
            words = (words.view(np.uint32) - ones).view(np.int32)
        return words


def find(tensors: Tensors, settings: Mapping[str, Json], dtype: str) -> Quantization | None:
    """The GPTQ weights, by their ``qweight``; None where there are none.

    Raises:
        InvalidInputError: a part is missing, or the shapes contradict each other.
        UnsupportedError: another format of GPTQ's, or another number of bits.
    """
    del dtype  # that of the scales
    form = str(settings.get("checkpoint_format") or settings.get("format") or "gptq")
    if form not in _FORMATS:
        raise UnsupportedError(f"GPTQ weights in the format {form!r}; loreg reads gptq and gptq_v2")
    known = frozenset(tensors.names())
    weights = {}
    for key in sorted(name for name in known if name.endswith(".qweight")):
        module = key.removesuffix(".qweight")
        weights[f"{module}.weight"] = _read(tensors, known, module, settings, form == "gptq")
    if not weights:
        return None
    bits, size = integer(settings, "bits"), integer(settings, "group_size")
    return Quantization(Scheme("gptq", {"bits": bits, "group": size}), weights)


def _read(
    tensors: Tensors, known: frozenset[str], module: str, settings: Mapping[str, Json], first_form: bool
) -> GptqWeight:
    names = [f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")]
    codes = require(tensors, known, names[0], ("I32",), axes=2)
    zeros = require(tensors, known, names[1], ("I32",), axes=2)
    scales = require(tensors, known, names[2], ("F16", "BF16", "F32"), axes=2)
    if names[3] in known:
        groups = require(tensors, known, names[3], ("I32",), axes=1)
        inputs = len(groups)
    else:
        inputs = codes.shape[0] * 32 // (integer(settings, "bits") or 4)
        size = integer(settings, "group_size") or -1
        groups = np.arange(inputs) // (size if size > 0 else inputs)
        names.pop()
    bits = codes.shape[0] * 32 // max(inputs, 1)
    outputs = codes.shape[1]
    if bits not in _BITS or codes.shape[0] != -(-inputs * bits // 32):
        raise UnsupportedError(f"{module}: {codes.shape[0]} words hold {inputs} inputs; loreg reads 2, 3, 4 or 8 bits")
    consistent = len(scales) == len(zeros) and scales.shape[1] == outputs and zeros.shape[1] == -(-outputs * bits // 32)
    if not consistent or not inputs or groups.min() < 0 or groups.max() >= len(scales):
        raise InvalidInputError(
            f"{module}: qweight {list(codes.shape)}, qzeros {list(zeros.shape)}, scales {list(scales.shape)} and the "
            f"groups of {inputs} inputs are not of one weight"
        )
    shape = (outputs, inputs)
    return GptqWeight(shape, tensors.dtype(names[2]), tuple(names), bits, first_form, codes, zeros, scales, groups)
