"""Tiny models of real architectures: random weights, a vocabulary of about a hundred, no two axes alike.

Each function returns a model in evaluation mode whose every parameter is random, LayerNorms and biases too:
weights that are all ones or zeros would look alike to anything that finds tensors by their values, and would
hide a bias that went missing. The same seed gives the same weights.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForTokenClassification,
    T5Config,
    T5EncoderModel,
)

_ENCODER = {
    "vocab_size": 103,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
}


def llama(*, tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """Grouped-query attention with heads wider than hidden/heads, so that q, k, v and o all have other shapes."""
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=tied,
    )
    return _random(LlamaForCausalLM, config, seed)


def gpt2(*, seed: int = 0) -> GPT2LMHeadModel:
    """Conv1D layers: weights as (in, out)."""
    config = GPT2Config(
        vocab_size=101,
        n_positions=64,
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_inner=80,
        bos_token_id=1,
        eos_token_id=2,
    )
    return _random(GPT2LMHeadModel, config, seed)


def bert(*, seed: int = 0) -> BertModel:
    """A bare encoder: what sentence embeddings are made with."""
    return _random(BertModel, BertConfig(**_ENCODER), seed)


def bert_sequence_classifier(*, labels: int = 3, seed: int = 0) -> BertForSequenceClassification:
    """One label for a text; ``classifier`` is what PEFT saves whole."""
    return _random(BertForSequenceClassification, BertConfig(**_ENCODER, num_labels=labels), seed)


def bert_token_classifier(*, labels: int = 5, seed: int = 0) -> BertForTokenClassification:
    """One label for each token."""
    return _random(BertForTokenClassification, BertConfig(**_ENCODER, num_labels=labels), seed)


def roberta_token_classifier(*, labels: int = 5, seed: int = 0) -> RobertaForTokenClassification:
    """Positions count from the padding index on, which is 1."""
    config = RobertaConfig(**_ENCODER, num_labels=labels, pad_token_id=1, bos_token_id=0, eos_token_id=2)
    return _random(RobertaForTokenClassification, config, seed)


def deberta_sequence_classifier(*, labels: int = 3, seed: int = 0) -> DebertaV2ForSequenceClassification:
    """Relative positions, shared attention keys: the graph that exporters find hardest."""
    config = DebertaV2Config(
        **_ENCODER,
        num_labels=labels,
        relative_attention=True,
        position_biased_input=False,
        pos_att_type=["p2c", "c2p"],
        position_buckets=16,
        max_relative_positions=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        type_vocab_size=0,
    )
    return _random(DebertaV2ForSequenceClassification, config, seed)


def t5_encoder(*, seed: int = 0) -> T5EncoderModel:
    """Relative positions from a table of one layer, linear layers without biases."""
    config = T5Config(
        vocab_size=97, d_model=48, d_kv=12, d_ff=80, num_layers=2, num_heads=4, relative_attention_num_buckets=8
    )
    config._attn_implementation = "eager"  # the other one cannot be exported with torch 2.13
    return _random(T5EncoderModel, config, seed)


class Convolutions(torch.nn.Module):
    """A convolution of each sort and a linear layer; takes (batch, 6, 12, 10) float32, gives (batch, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Conv2d(6, 12, kernel_size=(3, 3), padding=1)
        self.grouped = torch.nn.Conv2d(12, 16, kernel_size=(3, 2), groups=2)
        self.pointwise = torch.nn.Conv2d(16, 10, kernel_size=1)
        self.along = torch.nn.Conv1d(10, 14, kernel_size=3)
        self.head = torch.nn.Linear(14, 7)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.stem(image))
        features = torch.relu(self.grouped(features))
        features = torch.relu(self.pointwise(features)).mean(dim=2)
        features = torch.relu(self.along(features)).mean(dim=2)
        return self.head(features)


def cnn(*, seed: int = 0) -> Convolutions:
    """The module above; it has no config, so its base is one safetensors file."""
    return randomize(Convolutions(), seed).eval()


DECODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama-tied": lambda: llama(tied=True),
    "llama-untied": lambda: llama(tied=False),
    "gpt2": gpt2,
}
ENCODERS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert,
    "bert-sequence": bert_sequence_classifier,
    "bert-token": bert_token_classifier,
    "roberta-token": roberta_token_classifier,
    "deberta-sequence": deberta_sequence_classifier,
}
MODELS: dict[str, Callable[[], torch.nn.Module]] = {**DECODERS, **ENCODERS, "cnn": cnn}
"""Every model here, by the name of its folder."""


def save(model: torch.nn.Module, folder: Path) -> Path:
    """Save as a Hugging Face folder, or as one ``model.safetensors`` where there is no config; returns the folder."""
    if isinstance(model, PreTrainedModel):
        model.save_pretrained(folder)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), folder / "model.safetensors")
    return folder


def inputs(model: torch.nn.Module, *, batch: int = 2, length: int = 9, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random inputs without padding: ``input_ids`` and ``attention_mask`` (batch, length) int64, or ``image``."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Convolutions):
        return {"image": torch.randn(batch, 6, 12, 10, generator=generator)}
    if hasattr(model, "image_shape"):  # image_models
        images = {"image": torch.randn(batch, *model.image_shape, generator=generator)}
        labels = (
            {"label": torch.randint(0, 9, (batch,), generator=generator)} if hasattr(model, "class_embedding") else {}
        )
        return {**images, **labels}
    ids = torch.randint(3, model.config.vocab_size, (batch, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _random(cls: type[PreTrainedModel], config: object, seed: int) -> PreTrainedModel:
    return randomize(cls(config), seed).eval()


def randomize(module: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Add N(0, 0.1²) to every parameter; a tied one counts once."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + parameter.mean().round())
    return module
