"""Tiny encoder-decoders, vision models and two-sided ones as folders and as loreg's own exports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import image_models
import tiny_models
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lora_registry.runtime.export import ExportReport, export_model


def t5() -> PreTrainedModel:
    """Relative positions, one embedding for encoder, decoder and head, no biases; blocks that say a lot."""
    config = T5Config(
        vocab_size=97,
        d_model=48,
        d_kv=12,
        d_ff=80,
        num_layers=1,
        num_heads=4,
        relative_attention_num_buckets=8,
        decoder_start_token_id=0,
    )
    config._attn_implementation = "eager"
    module = tiny_models.randomize(T5ForConditionalGeneration(config), 0).eval()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".block." in name and parameter.dim() == 2:
                parameter.mul_(3)
    return module


def whisper() -> PreTrainedModel:
    """Sounds of one length, learned positions, a head that is the embedding."""
    config = WhisperConfig(
        vocab_size=97,
        num_mel_bins=8,
        d_model=48,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=80,
        decoder_ffn_dim=72,
        max_source_positions=30,
        max_target_positions=40,
        pad_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        suppress_tokens=[],
        begin_suppress_tokens=[],
    )
    return tiny_models.randomize(WhisperForConditionalGeneration(config), 0).eval()


def resnet() -> PreTrainedModel:
    """Convolutions and normalizations, images of any size."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=5)
    return tiny_models.randomize(ResNetForImageClassification(config), 0).eval()


def clip() -> PreTrainedModel:
    """Texts and images, each counted by itself."""
    side = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 3}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = CLIPConfig(
        text_config={"vocab_size": 97, "max_position_embeddings": 32, **special, **side},
        vision_config={"image_size": 16, "patch_size": 8, **side},
        projection_dim=20,
    )
    return tiny_models.randomize(CLIPModel(config), 0).eval()


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "t5": t5,
    "whisper": whisper,
    "vit": image_models.vit,
    "resnet": resnet,
    "clip": clip,
}


@dataclass(frozen=True)
class Family:
    """One model in three forms; ``out`` is the folder that was exported."""

    module: PreTrainedModel
    folder: Path
    out: Path
    report: ExportReport


def export(family: str, root: Path) -> Family:
    """Save a model below ``root`` and export it into a folder."""
    module = FAMILIES[family]()
    folder = tiny_models.save(module, root / "base")
    return Family(module, folder, root / "out", export_model(folder, root / "out"))
