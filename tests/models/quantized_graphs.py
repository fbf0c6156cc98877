"""Tiny ONNX models in every quantized form that loreg reads: made by onnxruntime's own quantizers, or by hand."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

Array = np.ndarray
NAME = "model.layer.weight"
WIDTH, HEIGHT = 64, 24
_FLOATS = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}


def weights(seed: int = 0) -> Array:
    """A matrix (in, out)."""
    return (np.random.default_rng(seed).standard_normal((WIDTH, HEIGHT)) * 0.1).astype(np.float32)


def inputs(rows: int = 5, dtype: type = np.float32) -> Array:
    """Activations (rows, in)."""
    return np.random.default_rng(9).standard_normal((rows, WIDTH)).astype(dtype)


def model(
    nodes: list[onnx.NodeProto],
    tensors: dict[str, Array],
    path: Path,
    *,
    dtype: int = TensorProto.FLOAT,
    opset: int = 21,
    external: bool = False,
) -> Path:
    """A model of x (n, in) → y (n, out), or of tokens → y where the first node is a Gather of ids."""
    taken = "ids" if any("ids" in node.input for node in nodes) else "x"
    first = helper.make_tensor_value_info(
        taken, TensorProto.INT64 if taken == "ids" else dtype, ["n"] if taken == "ids" else ["n", WIDTH]
    )
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [first],
            [helper.make_tensor_value_info("y", dtype, ["n", None])],
            [numpy_helper.from_array(array, name) for name, array in tensors.items()],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)],
        ir_version=10,
    )
    location = f"{path.name}.data" if external else None
    onnx.save(proto, path, save_as_external_data=external, location=location, size_threshold=0)
    return path


def plain(path: Path, *, bias: bool = False) -> Path:
    """MatMul, and Add where there is a bias."""
    tensors = {NAME: weights()}
    nodes = [helper.make_node("MatMul", ["x", NAME], ["product" if bias else "y"], name="/model/layer/MatMul")]
    if bias:
        tensors["model.layer.bias"] = np.linspace(-1, 1, HEIGHT, dtype=np.float32)
        nodes.append(helper.make_node("Add", ["product", "model.layer.bias"], ["y"], name="/model/layer/Add"))
    return model(nodes, tensors, path)


def gemm(path: Path) -> Path:
    """Gemm with transB and a bias, as exporters write heads."""
    tensors = {
        NAME: np.ascontiguousarray(weights().T),
        "model.layer.bias": np.linspace(-1, 1, HEIGHT, dtype=np.float32),
    }
    node = helper.make_node("Gemm", ["x", NAME, "model.layer.bias"], ["y"], name="/model/layer/Gemm", transB=1)
    return model([node], tensors, path)


def nbits(bits: int, *, symmetric: bool, qdq: bool = False, bias: bool = False) -> Callable[[Path], Path]:
    """What MatMulNBitsQuantizer makes."""

    def make(path: Path) -> Path:
        logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.ERROR)
        quantizer = MatMulNBitsQuantizer(
            onnx.load(plain(path, bias=bias)),
            bits=bits,
            block_size=16,
            is_symmetric=symmetric,
            quant_format=QuantFormat.QDQ if qdq else QuantFormat.QOperator,
        )
        quantizer.process()
        onnx.save(quantizer.model.model, path)
        return path

    return make


def float_zeros(path: Path) -> Path:
    """MatMulNBits with zero points that are floats, and scales on one axis, as older files have them."""
    blocks = WIDTH // 16
    random = np.random.default_rng(2)
    tensors = {
        f"{NAME}_Q4": random.integers(0, 256, (HEIGHT, blocks, 8), dtype=np.uint8),
        f"{NAME}_scales": (random.random(HEIGHT * blocks) * 0.05 + 0.01).astype(np.float32),
        f"{NAME}_zero_points": (random.random(HEIGHT * blocks) + 7).astype(np.float32),
    }
    node = helper.make_node(
        "MatMulNBits",
        ["x", *tensors],
        ["y"],
        name="/model/layer/MatMul_Q4",
        domain="com.microsoft",
        K=WIDTH,
        N=HEIGHT,
        bits=4,
        block_size=16,
    )
    return model([node], tensors, path)


def dynamic(*, per_channel: bool) -> Callable[[Path], Path]:
    """What quantize_dynamic makes."""

    def make(path: Path) -> Path:
        logging.getLogger().setLevel(logging.ERROR)
        quantize_dynamic(plain(path), path, weight_type=QuantType.QInt8, per_channel=per_channel)
        return path

    return make


class _Calibration(CalibrationDataReader):
    """One batch."""

    def __init__(self) -> None:
        self._batches = iter([{"x": inputs(32)}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def static(*, per_channel: bool, weight: QuantType = QuantType.QInt8, kind: str = "MatMul") -> Callable[[Path], Path]:
    """What quantize_static makes: QDQ."""

    def make(path: Path) -> Path:
        logging.getLogger().setLevel(logging.ERROR)
        source = gemm(path) if kind == "Gemm" else plain(path)
        options = {"per_channel": per_channel, "weight_type": weight, "activation_type": QuantType.QUInt8}
        quantize_static(source, path, _Calibration(), **options)
        return path

    return make


def float8(path: Path) -> Path:
    """DequantizeLinear of float8, one scale an output."""
    scales = (np.abs(weights()).max(axis=0) / 448).astype(np.float32)
    tensors = {f"{NAME}_quantized": (weights() / scales).astype(ml_dtypes.float8_e4m3fn), f"{NAME}_scale": scales}
    nodes = [
        helper.make_node("DequantizeLinear", [*tensors], ["w"], name="dequantize", axis=1),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="/model/layer/MatMul"),
    ]
    return model(nodes, tensors, path)


FORMS: dict[str, Callable[[Path], Path]] = {
    "nbits-4": nbits(4, symmetric=True),
    "nbits-4-zeros": nbits(4, symmetric=False),
    "nbits-8": nbits(8, symmetric=True),
    "nbits-8-zeros": nbits(8, symmetric=False),
    "nbits-float-zeros": float_zeros,
    "qdq-4": nbits(4, symmetric=True, qdq=True),
    "qdq-4-zeros": nbits(4, symmetric=False, qdq=True),
    "qdq-tensor": static(per_channel=False),
    "qdq-channel": static(per_channel=True),
    "qdq-uint8": static(per_channel=False, weight=QuantType.QUInt8),
    "qdq-gemm": static(per_channel=True, kind="Gemm"),
    "dynamic-tensor": dynamic(per_channel=False),
    "dynamic-channel": dynamic(per_channel=True),
    "float8": float8,
}
"""Every form by name, of a layer that is called ``model.layer``."""


def session(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime without its own fusions: these round activations to 8 bits."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, feed: Array) -> Array:
    """The first output of a model."""
    opened = session(path)
    result: Array = opened.run(None, {opened.get_inputs()[0].name: feed})[0]
    return result
