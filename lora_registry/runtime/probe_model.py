"""A model of one MatMul as bytes, written without the onnx package: the smallest proof that a provider runs.

Field numbers are those of ``onnx.proto`` (IR version 8), wire types those of protocol buffers.
"""

from __future__ import annotations

SIDE = 8
"""``y = x @ x`` for float32 x of shape (SIDE, SIDE)."""

_FLOAT = 1  # TensorProto.DataType.FLOAT


def matmul_model() -> bytes:
    """A serialized ``ModelProto``: input ``x``, output ``y``, opset 13."""
    node = _text(1, "x") + _text(1, "x") + _text(2, "y") + _text(4, "MatMul")
    graph = _bytes(1, node) + _text(2, "probe") + _bytes(11, _value("x")) + _bytes(12, _value("y"))
    opset = _text(1, "") + _number(2, 13)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, opset)


def _value(name: str) -> bytes:
    side = _bytes(1, _number(1, SIDE))
    tensor_type = _number(1, _FLOAT) + _bytes(2, side + side)
    return _text(1, name) + _bytes(2, _bytes(1, tensor_type))


def _number(field: int, value: int) -> bytes:
    return bytes((field << 3, value))  # a varint below 128 is one byte


def _bytes(field: int, value: bytes) -> bytes:
    if len(value) >= 128:
        raise ValueError(f"{len(value)} bytes need a longer length")
    return bytes((field << 3 | 2, len(value))) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())
