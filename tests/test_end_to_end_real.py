"""The main job on the two real models: what holds for tiny ones holds for 23 and 135 million parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from parity import TOLERANCE, first_output, onnx_output, onnx_weights, relative_error, worst
from peft import LoraConfig
from peft_adapters import arrays, make_peft_adapter, merged_model
from safetensors.numpy import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lora_registry.convert.discover import detect
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.registry import Registry

OUTPUT_TOLERANCE = 5e-5
"""Thirty layers of float32 in another order of additions; the weights themselves are held to TOLERANCE."""

SMOLLM2 = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", use_rslora=True)
MINILM = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "key", "value", "dense"], use_dora=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "loader", "config"),
    [("minilm", AutoModel, MINILM), ("smollm2", AutoModelForCausalLM, SMOLLM2)],
    ids=["minilm", "smollm2"],
)
def test_a_real_model_is_merged_as_peft_merges_it(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    name: str,
    loader: type[AutoModel | AutoModelForCausalLM],
    config: LoraConfig,
) -> None:
    """Through the registry, into a folder and into ONNX: weights within 1e-5 of PEFT's merge, and the same outputs."""
    base: Path = request.getfixturevalue(f"{name}_dir")
    base_onnx: Path = request.getfixturevalue(f"{name}_onnx")
    model = loader.from_pretrained(base, dtype=torch.float32).eval()
    batch = AutoTokenizer.from_pretrained(base)(["The lighthouse at the end of the pier is dark."], return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before = first_output(model, inputs)
    merged = merged_model(make_peft_adapter(model, config, tmp_path / "peft", size=0.01))
    weights, outputs = arrays(merged), first_output(merged, inputs)
    assert relative_error(before, outputs) > 100 * OUTPUT_TOLERANCE

    adapter, _ = detect(tmp_path / "peft").read(tmp_path / "peft")
    registry = Registry.open(tmp_path / "registry")
    registry.push(adapter, "real:1")
    pulled = registry.load("real:1")

    merge_checkpoint(pulled, base, tmp_path / "merged")
    error, where = worst(load_file(tmp_path / "merged" / "model.safetensors"), weights)
    assert error <= TOLERANCE, where
    reloaded = loader.from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    assert relative_error(first_output(reloaded, inputs), outputs) <= TOLERANCE

    merge_onnx(pulled, base_onnx, tmp_path / "merged.onnx")
    in_onnx = onnx_weights(tmp_path / "merged.onnx")
    assert {target.name for target in pulled} <= in_onnx.keys()
    error, where = worst(in_onnx, weights)
    assert error <= TOLERANCE, where
    asked = {name: np.asarray(tensor) for name, tensor in inputs.items()}
    assert relative_error(onnx_output(tmp_path / "merged.onnx", asked), outputs) <= OUTPUT_TOLERANCE
