"""Models of transformers: embeddings that PEFT saves unasked, ties, resized vocabularies, experts."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from lora_registry.adapter import Kind

SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
EXPERTS = {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2}
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def llama(*, tied: bool = False) -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))


def resized() -> PreTrainedModel:
    model = llama()
    model.resize_token_embeddings(44)
    return model


BASES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": llama,
    "tied llama": lambda: llama(tied=True),
    "resized llama": resized,
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**EXPERTS)),
    "bert": lambda: BertForSequenceClassification(
        BertConfig(vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    ),
    "gpt-oss": lambda: GptOssForCausalLM(GptOssConfig(**EXPERTS, head_dim=8)),
}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, Kind]]] = {
    "embeddings": (
        "llama",
        {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
        {"model.embed_tokens.weight": Kind.EMBEDDING, "lm_head.weight": Kind.LINEAR},
    ),
    "tied adapters": (
        "tied llama",
        {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"model.embed_tokens.weight": Kind.EMBEDDING, "lm_head.weight": Kind.LINEAR},
    ),
    "tied tokens": (
        "tied llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": [30, 3], "ensure_weight_tying": True},
        {"model.embed_tokens.weight": Kind.TOKENS},
    ),
    "tokens of two embeddings": (
        "llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [3, 30], "lm_head": [4, 2]}},
        {"model.embed_tokens.weight": Kind.TOKENS, "lm_head.weight": Kind.TOKENS},
    ),
    "resized": (
        "resized llama",
        {"target_modules": ["q_proj"]},
        {"model.embed_tokens.weight": Kind.FULL, "lm_head.weight": Kind.FULL},
    ),
    "resized with tokens": (
        "resized llama",
        {"target_modules": ["q_proj"], "trainable_token_indices": [43, 41]},
        {"model.embed_tokens.weight": Kind.FULL, "lm_head.weight": Kind.FULL},
    ),
    "saved embeddings": (
        "tied llama",
        {"target_modules": ["v_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
        {"model.embed_tokens.weight": Kind.FULL, "lm_head.weight": Kind.FULL},
    ),
    "mixtral": (
        "mixtral",
        {"target_modules": ["q_proj"], "target_parameters": PARAMETERS},
        {f"model.layers.0.{name}": Kind.EXPERTS for name in PARAMETERS},
    ),
    "mixtral, all-linear": (
        "mixtral",
        {"target_modules": "all-linear", "target_parameters": ["gate_up_proj", "gate.weight", "down_proj"]},
        {f"model.layers.0.{name}": Kind.EXPERTS for name in PARAMETERS}
        | {"model.layers.0.mlp.gate.weight": Kind.LINEAR, "model.layers.0.self_attn.k_proj.weight": Kind.LINEAR},
    ),
    "gpt-oss": (
        "gpt-oss",
        {"target_modules": ["q_proj"], "target_parameters": PARAMETERS, "bias": "all"},
        {f"model.layers.0.{name}": Kind.EXPERTS for name in PARAMETERS},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_adapters_of_transformers_models_come_back(name: str, tmp_path: Path) -> None:
    """The kinds are right, shapes are those of the base, the keys come back, and PEFT computes the same logits."""
    base, options, kinds = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = BASES[base]()
        shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
        wrapped = get_peft_model(model, LoraConfig(r=4, init_lora_weights=False, **options)).eval()
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        wrapped.save_pretrained(tmp_path / "saved", save_embedding_layers=True if "resized" in name else "auto")
        adapter, _ = converter.read(tmp_path / "saved")
        converter.write(adapter, tmp_path / "again")
        torch.manual_seed(0)
        again = PeftModel.from_pretrained(BASES[base](), tmp_path / "again").eval()
    for target, kind in kinds.items():
        assert adapter.target(target).kind is kind
    for target in adapter:
        assert target.shape in (None, shapes[target.name])
    if name != "resized with tokens":  # there the rows are written into the embedding
        before, after = (load_file(tmp_path / place / "adapter_model.safetensors") for place in ("saved", "again"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
    tokens = torch.arange(28, 40).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(again(tokens).logits, wrapped(tokens).logits, rtol=0, atol=0)


def test_biases_of_a_saved_module_are_there_once(tmp_path: Path) -> None:
    """With bias="all" PEFT saves a saved module's biases under three names; the trained one is the target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = LoraConfig(r=2, target_modules=["query"], bias="all", task_type="SEQ_CLS")
        wrapped = get_peft_model(BASES["bert"](), config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if parameter.requires_grad and "original_module" not in name:
                    parameter.add_(torch.randn_like(parameter))
        wrapped.save_pretrained(tmp_path)
    keys = [key for key in load_file(tmp_path / "adapter_model.safetensors") if "classifier" in key and "bias" in key]
    assert len(keys) == 3
    adapter, report = converter.read(tmp_path)
    assert [target.name for target in adapter if "classifier" in target.name] == [
        "classifier.bias", "classifier.weight",
    ]  # fmt: skip
    trained = wrapped.base_model.model.classifier.modules_to_save["default"].bias
    assert bytes(adapter.target("classifier.bias").tensors["value"].data) == trained.detach().numpy().tobytes()
    assert any("original_module" in str(entry) for entry in report.losses)
