"""Tied tensors and half precision: a merged ONNX model computes what PEFT's merged model computes.

What every model, exporter and kind of adapter gives is in test_matrix.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import pytest
import tiny_models
import torch
from onnx_models import adapter_of, run_onnx, run_torch
from parity import relative_error
from peft import LoraConfig
from peft_adapters import make_peft_adapter, peft_warnings_off

from lora_registry.adapter import Adapter
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.model import OnnxModel
from lora_registry.ops.change import merged

Exports = Callable[[str, str], Path]

TOLERANCE = 1e-5


@pytest.mark.parametrize("exporter", onnx_models.EXPORTERS)
def test_both_uses_of_a_tied_tensor_change_as_in_a_merged_torch_model(
    exporter: str, exports: Exports, tmp_path: Path
) -> None:
    """PEFT's merge_and_unload changes the shared parameter; tied="both" does the same."""
    wrapped = make_peft_adapter(
        tiny_models.MODELS["llama-tied"](), LoraConfig(r=4, target_modules=["embed_tokens"]), tmp_path / "adapter"
    )
    inputs = tiny_models.inputs(tiny_models.MODELS["llama-tied"](), seed=7)
    adapter, unmerged = adapter_of(wrapped), run_torch(wrapped.base_model.model, inputs)
    with peft_warnings_off():
        merged = run_torch(wrapped.merge_and_unload(), inputs)
    base = exports("llama-tied", exporter)

    merge_onnx(adapter, base, tmp_path / "both.onnx", tied="both")
    receipt = merge_onnx(adapter, base, tmp_path / "untied.onnx", tied="untie")

    assert relative_error(merged, unmerged) > 100 * TOLERANCE
    assert relative_error(run_onnx(tmp_path / "both.onnx", inputs), merged) < TOLERANCE
    assert relative_error(run_onnx(tmp_path / "untied.onnx", inputs), unmerged) < TOLERANCE
    assert any("is tied" in note for note in receipt.notes)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_rounded_once(dtype: str, tmp_path: Path) -> None:
    """The initializer keeps its dtype and holds the float32 result, rounded once."""
    numpy_type = np.dtype(np.float16) if dtype == "float16" else np.dtype(ml_dtypes.bfloat16)
    weight = np.random.default_rng(0).standard_normal((6, 8)).astype(numpy_type)
    nodes = [
        onnx.helper.make_node("Cast", ["w"], ["wide"], to=1),
        onnx.helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    onnx_models.graph(nodes, {"w": weight}, inputs={"x": ["n", 6]}, path=tmp_path / "base.onnx")
    target = onnx_models.linear_adapter("w", (6, 8), layout=("in", "out"))

    merge_onnx(Adapter(targets=(target,)), tmp_path / "base.onnx", tmp_path / "merged.onnx")

    written = OnnxModel.open(tmp_path / "merged.onnx").array("w")
    assert written.dtype == numpy_type
    np.testing.assert_array_equal(written, merged(target, weight).astype(numpy_type))
    expected = torch.ones(2, 6).numpy() @ written.astype(np.float32)
    assert relative_error(run_onnx(tmp_path / "merged.onnx", {"x": torch.ones(2, 6)}), expected) < TOLERANCE
