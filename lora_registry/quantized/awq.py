"""AWQ: groups of inputs share a scale and a zero point for each output, in four bits (Lin et al. 2023).

What is stored in a module, in AutoAWQ's version ``gemm``, eight elements a word::

    qweight     I32 (in, out / 8)
    qzeros      I32 (groups, out / 8)
    scales      F16 or BF16 (groups, out)

Both are packed along the outputs, and a word has its outputs in the order 0, 2, 4, 6, 1, 3, 5, 7, lowest bits first
(AutoAWQ 0.2.9, ``awq/utils/packing_utils.py``). Element = scale · (q - zero).
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

_FIELD_OF = np.array([0, 4, 1, 5, 2, 6, 3, 7])
"""Field of a word that holds its first, second, ... output."""


@dataclass(frozen=True, slots=True, eq=False)
class AwqWeight:
    """A weight in AWQ's format.

    Attributes:
        shape: (out, in).
        dtype: of the scales, and of what AWQ's kernels dequantize to.
        parts: names of the stored tensors.
        codes: ``qweight``.
        zeros: ``qzeros``.
        scales: (groups, out).
    """

    shape: tuple[int, int]
    dtype: str
    parts: tuple[str, ...]
    codes: Array
    zeros: Array
    scales: Array

    def rows(self, first: int, last: int) -> Array:
        """Rows of outputs, which are columns of what is stored."""
        size = self.shape[1] // len(self.scales)
        zeros = np.repeat(outputs(self.zeros, first, last), size, axis=1)
        scales = np.repeat(self.scales[:, first:last].T.astype(np.float32), size, axis=1)
        result: Array = (outputs(self.codes, first, last) - zeros) * scales
        return result


def outputs(packed: Array, first: int, last: int) -> Array:
    """Some outputs of packed words: int16, (last - first, rows of ``packed``)."""
    begin = first // 8
    part = np.ascontiguousarray(packed[:, begin : -(-last // 8)])
    fields = unpack(part[..., np.newaxis], 4, 8)[..., _FIELD_OF].reshape(len(packed), -1)
    result: Array = fields[:, first - begin * 8 : last - begin * 8].T.astype(np.int16)
    return result


def words(numbers: Array) -> Array:
    """The inverse: whole words of outputs, (outputs, rows), as int32 (rows, outputs / 8)."""
    fields = np.empty((numbers.shape[1], len(numbers) // 8, 8), np.uint8)
    fields[..., _FIELD_OF] = numbers.T.reshape(fields.shape)
    return pack(fields, 4)[..., 0]


def find(tensors: Tensors, settings: Mapping[str, Json], dtype: str) -> Quantization | None:
    """The AWQ weights, by their ``qweight``; None where there are none.

    Raises:
        InvalidInputError: a part is missing, or the shapes contradict each other.
        UnsupportedError: another version of AWQ's, or another number of bits.
    """
    del dtype  # that of the scales
    version = str(settings.get("version") or settings.get("format") or "gemm").lower()
    if version != "gemm":
        raise UnsupportedError(f"AWQ weights in the version {version!r}; loreg reads gemm")
    bits = integer(settings, "bits") or 4
    if bits != 4:
        raise UnsupportedError(f"AWQ weights of {bits} bits; loreg reads those of 4")
    known = frozenset(tensors.names())
    weights = {}
    for key in sorted(name for name in known if name.endswith(".qweight")):
        module = key.removesuffix(".qweight")
        weights[f"{module}.weight"] = _read(tensors, known, module, integer(settings, "group_size"))
    scheme = Scheme("awq", {"bits": bits, "group": integer(settings, "group_size")})
    return Quantization(scheme, weights) if weights else None


def _read(tensors: Tensors, known: frozenset[str], module: str, group: int | None) -> AwqWeight:
    names = tuple(f"{module}.{part}" for part in ("qweight", "qzeros", "scales"))
    codes = require(tensors, known, names[0], ("I32",), axes=2)
    zeros = require(tensors, known, names[1], ("I32",), axes=2)
    scales = require(tensors, known, names[2], ("F16", "BF16", "F32"), axes=2)
    inputs, outputs = codes.shape[0], codes.shape[1] * 8
    consistent = len(scales) == len(zeros) and scales.shape[1] == outputs and zeros.shape[1] == codes.shape[1]
    sized = group is None or group <= 0 or group * len(scales) == inputs
    if not consistent or not len(scales) or inputs % len(scales) or not sized:
        raise InvalidInputError(
            f"{module}: qweight {list(codes.shape)}, qzeros {list(zeros.shape)} and scales {list(scales.shape)} are "
            "not of one weight"
        )
    return AwqWeight((outputs, inputs), tensors.dtype(names[2]), names, codes, zeros, scales)
