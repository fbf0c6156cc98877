"""The tiny models as folders and as loreg's own exports, and the inputs to compare them with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny_models
import torch
from transformers import BertConfig, BertForMaskedLM, PreTrainedModel

from lora_registry.runtime.export import ExportReport, export_model

DECODERS = sorted(tiny_models.DECODERS)
ENCODERS = sorted([*tiny_models.ENCODERS, "bert-mlm"])
FAMILIES = [*DECODERS, *ENCODERS]


@dataclass(frozen=True)
class Exported:
    """One model in three forms."""

    module: PreTrainedModel
    folder: Path
    path: Path
    report: ExportReport


def make(family: str) -> PreTrainedModel:
    """A fresh random model of a family."""
    if family == "gpt2":
        return _lively(tiny_models.gpt2())
    if family != "bert-mlm":
        return tiny_models.MODELS[family]()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=103,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=40,
        initializer_range=0.2,
    )
    return BertForMaskedLM(config).eval()


def _lively(module: PreTrainedModel) -> PreTrainedModel:
    """Larger weights in the blocks: a tied model whose blocks say little repeats its last token for ever."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".h." in name and parameter.dim() == 2:
                parameter.mul_(4)
    return module


def export(family: str, root: Path) -> Exported:
    """Save a model below ``root`` and export it."""
    module = make(family)
    folder = tiny_models.save(module, root / "base")
    path = root / "base.onnx"
    return Exported(module, folder, path, export_model(folder, path))


def tokens(batch: int, sequence: int) -> np.ndarray:
    """Random token ids, int64, without those that are special."""
    return np.random.default_rng(batch * 100 + sequence).integers(3, 96, size=(batch, sequence))


def relative(got: np.ndarray, wanted: torch.Tensor) -> float:
    """The largest error, relative to the largest value that was wanted."""
    reference = wanted.detach().numpy()
    assert got.shape == reference.shape
    return float(np.abs(got - reference).max() / np.abs(reference).max())
