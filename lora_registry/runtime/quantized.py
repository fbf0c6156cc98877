"""Whether a model can be held against an unquantized base at all."""

from __future__ import annotations

from pathlib import Path

from lora_registry.errors import UnsupportedError
from lora_registry.runtime.packages import require


def refuse_quantized(path: Path) -> None:
    """Refuse an ONNX model whose outputs no tolerance of a float type fits.

    Raises:
        UnsupportedError: operators of it compute with quantized weights.
    """
    if not path.is_file():
        return
    ir = require("onnx_ir", "onnx")
    from lora_registry.onnx.model import OnnxModel
    from lora_registry.onnx.sites import QUANTIZED_OPERATORS

    nodes = ir.traversal.RecursiveGraphIterator(OnnxModel.open(path).ir.graph)
    found = sorted({node.op_type for node in nodes} & QUANTIZED_OPERATORS)
    if found:
        raise UnsupportedError(
            f"{path} computes with quantized weights ({', '.join(found)}), so that its outputs are off from the base's "
            "by what quantizing took, whatever was merged; say how far they may be (--tolerance) to compare them anyway"
        )
