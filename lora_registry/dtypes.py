"""The element types, once: safetensors name, size, and what the others call it.

Names are those of safetensors, because they are what stands in the files. Sub-byte types are left out on
purpose: no trainer writes factors in them, and a byte range of half a byte is a trap.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Dtype:
    """One element type.

    Attributes:
        name: safetensors' name, such as ``BF16``.
        size: bytes an element.
        numpy: name of the numpy or ml_dtypes type, such as ``bfloat16``.
        torch: attribute of the torch module, such as ``bfloat16``.
        onnx: number in onnx.TensorProto.DataType.
        floating: whether factors may have it.
    """

    name: str
    size: int
    numpy: str
    torch: str
    onnx: int
    floating: bool

    @property
    def is_wide_float(self) -> bool:
        """Whether this is a float type of 16 bits or more: one that unquantized weights are kept in."""
        return self.floating and self.size > 1


_TABLE = (
    Dtype("F64", 8, "float64", "float64", 11, floating=True),
    Dtype("F32", 4, "float32", "float32", 1, floating=True),
    Dtype("F16", 2, "float16", "float16", 10, floating=True),
    Dtype("BF16", 2, "bfloat16", "bfloat16", 16, floating=True),
    Dtype("F8_E4M3", 1, "float8_e4m3fn", "float8_e4m3fn", 17, floating=True),
    Dtype("F8_E5M2", 1, "float8_e5m2", "float8_e5m2", 19, floating=True),
    Dtype("I64", 8, "int64", "int64", 7, floating=False),
    Dtype("I32", 4, "int32", "int32", 6, floating=False),
    Dtype("I16", 2, "int16", "int16", 5, floating=False),
    Dtype("I8", 1, "int8", "int8", 3, floating=False),
    Dtype("U64", 8, "uint64", "uint64", 13, floating=False),
    Dtype("U32", 4, "uint32", "uint32", 12, floating=False),
    Dtype("U16", 2, "uint16", "uint16", 4, floating=False),
    Dtype("U8", 1, "uint8", "uint8", 2, floating=False),
    Dtype("BOOL", 1, "bool", "bool", 9, floating=False),
)

DTYPES: dict[str, Dtype] = {dtype.name: dtype for dtype in _TABLE}
"""Every element type by its safetensors name."""

BY_NUMPY: dict[str, Dtype] = {dtype.numpy: dtype for dtype in _TABLE}
"""The same by the name of the numpy or ml_dtypes type."""

BY_TORCH: dict[str, Dtype] = {dtype.torch: dtype for dtype in _TABLE}
"""The same by the attribute of the torch module."""

BY_ONNX: dict[int, Dtype] = {dtype.onnx: dtype for dtype in _TABLE}
"""The same by the number in onnx.TensorProto.DataType."""
