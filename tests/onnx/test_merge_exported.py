"""Merging into what ``loreg export`` writes: a manifest, KV caches, free axes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
import torch
from loreg_converters.peft import converter
from onnx_models import adapter_of, run_torch
from parity import relative_error
from peft import LoraConfig
from peft_adapters import make_peft_adapter

from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.manifest import Manifest
from lora_registry.onnx.model import OnnxModel
from lora_registry.runtime.export import export_model

CASES: dict[str, dict[str, Any]] = {
    "llama-tied": {"target_modules": ["q_proj", "v_proj", "down_proj", "embed_tokens"], "use_rslora": True},
    "gpt2": {"target_modules": ["c_attn", "c_fc", "lm_head"]},
    "bert-sequence": {"target_modules": ["query", "word_embeddings"], "modules_to_save": ["classifier"]},
    "deberta-sequence": {"target_modules": ["query_proj", "dense"], "use_dora": True},
}


def feeds(session: onnxruntime.InferenceSession, inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The given inputs, and what else the graph asks for: positions, token types, an empty cache."""
    batch, length = inputs["input_ids"].shape
    filled = {name: values.numpy() for name, values in inputs.items()}
    for each in session.get_inputs():
        if each.name.startswith("past_key_values"):
            _, heads, _, width = each.shape
            filled[each.name] = np.zeros((batch, heads, 0, width), np.float32)
        elif each.name == "position_ids":
            filled[each.name] = np.tile(np.arange(length), (batch, 1))
        elif each.name == "token_type_ids":
            filled[each.name] = np.zeros((batch, length), np.int64)
    return filled


@pytest.mark.parametrize("name", CASES)
def test_merging_into_an_exported_folder_equals_peft(
    name: str, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """Found by manifest and by the exporter's own names, confirmed by the checkpoint, and equal to PEFT's output."""
    export_model(tiny_dir(name), tmp_path / "base.onnx")
    model = tiny_models.MODELS[name]()
    wrapped = make_peft_adapter(model, LoraConfig(r=3, **CASES[name]), tmp_path / "adapter")
    adapter = adapter_of(wrapped)

    receipt = merge_onnx(adapter, tmp_path / "base.onnx", tmp_path / "merged.onnx", base=tiny_dir(name))

    onnx.checker.check_model(str(tmp_path / "merged.onnx"), full_check=True)
    rules = {rule for record in receipt.tensors for rule in record.evidence["rules"]}
    assert {"manifest", "node-scope", "value-match"} <= rules
    inputs = tiny_models.inputs(tiny_models.MODELS[name](), batch=3, length=6, seed=11)
    session = onnxruntime.InferenceSession(str(tmp_path / "merged.onnx"), providers=["CPUExecutionProvider"])
    actual = session.run(None, feeds(session, inputs))[0]
    assert relative_error(actual, run_torch(wrapped.base_model.model, inputs)) < 1e-5

    merged = OnnxModel.open(tmp_path / "merged.onnx")
    manifest = Manifest.of(merged.ir.metadata_props)
    assert manifest is not None
    changed = {record.target: record.name for record in receipt.tensors}
    assert {target: manifest.tensors[target].initializer for target in changed} == changed


def test_rows_of_tokens_change_both_uses_of_a_tied_tensor(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """Trained tokens are new at the input and at the output, whatever the policy, as PEFT has them (P-008)."""
    export_model(tiny_dir("llama-tied"), tmp_path / "base.onnx")
    config = LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [3, 7]})
    wrapped = make_peft_adapter(tiny_models.llama(), config, tmp_path / "adapter")
    adapter, _ = converter.read(tmp_path / "adapter")
    inputs = tiny_models.inputs(wrapped)
    inputs["input_ids"][0, :2] = torch.tensor([3, 7])
    for tied in ("untie", "error"):
        merge_onnx(adapter, tmp_path / "base.onnx", tmp_path / f"{tied}.onnx", tied=tied)
        session = onnxruntime.InferenceSession(tmp_path / f"{tied}.onnx", providers=["CPUExecutionProvider"])
        logits = session.run(["logits"], feeds(session, inputs))[0]
        assert relative_error(logits, run_torch(wrapped, inputs)) <= 1e-5
