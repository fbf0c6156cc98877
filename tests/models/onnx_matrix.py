"""Every kind of model, exporter and adapter: merged into ONNX it equals PEFT, or is refused; never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import genai_model
import image_models
import numpy as np
import onnx_models
import tiny_models
import torch
from loreg_converters.peft import converter
from onnx_models import run_onnx, run_torch
from parity import relative_error
from peft import LoraConfig
from peft_adapters import make_peft_adapter, peft_warnings_off

from lora_registry.errors import ConflictError, InvalidInputError
from lora_registry.merge.onnx.model import merge_onnx

TOLERANCE = 1e-5
"""Largest error of an output in float32, relative to its largest number."""

EXPORTERS = {
    "dynamo": "optimized",
    "dynamo, not optimized": "raw",
    "TorchScript": "torchscript",
    "genai builder": "genai",
}
"""Name in the matrix to that of :data:`onnx_models.EXPORTERS`."""

METHODS = ("LoRA", "rsLoRA", "DoRA", "embedding", "patterns", "saved whole")


@dataclass(frozen=True)
class Subject:
    """A model of the matrix.

    Attributes:
        make: makes it, the same each time.
        targets: modules that LoRA adapts; the first two get ranks and alphas of their own.
        embedding: an embedding that LoRA adapts; None where there is none.
        saved: a module that is trained and saved whole.
    """

    make: Callable[[], torch.nn.Module]
    targets: tuple[str, ...]
    embedding: str | None
    saved: str | None


SUBJECTS = {
    "GPT-2": Subject(tiny_models.gpt2, ("c_attn", "c_fc", "c_proj"), "wte", "ln_f"),
    "Llama": Subject(
        lambda: tiny_models.llama(tied=False),
        ("q_proj", "v_proj", "k_proj", "o_proj", "down_proj", "lm_head"),
        "embed_tokens",
        "norm",
    ),
    "Llama, tied": Subject(tiny_models.llama, ("q_proj", "v_proj", "gate_proj"), "embed_tokens", "norm"),
    "BERT": Subject(
        tiny_models.bert_sequence_classifier, ("query", "value", "pooler.dense"), "word_embeddings", "classifier"
    ),
    "RoBERTa": Subject(tiny_models.roberta_token_classifier, ("query", "dense"), "word_embeddings", "classifier"),
    "DeBERTa-v2": Subject(
        tiny_models.deberta_sequence_classifier, ("query_proj", "value_proj", "dense"), "word_embeddings", "classifier"
    ),
    "T5 encoder": Subject(tiny_models.t5_encoder, ("q", "v", "wo"), "embed_tokens", "final_layer_norm"),
    "ViT": Subject(image_models.vit, ("q_proj", "v_proj", "fc1", "projection"), None, "classifier"),
    "CNN": Subject(tiny_models.cnn, ("stem", "pointwise", "along", "head"), None, "head"),
    "CNN, BatchNorm": Subject(image_models.normalized, ("conv", "head"), None, "head"),
    "UNet": Subject(
        image_models.unet,
        ("to_q", "to_v", "conv1", "conv_shortcut", "time_emb_proj", "to_out.0"),
        "class_embedding",
        "conv_out",
    ),
}


@dataclass(frozen=True)
class Cell:
    """What became of one combination.

    Attributes:
        error: of the merged model's output, against PEFT's; None where the merge was refused.
        moved: how far the adapter moves the output of the base, in the same measure.
        refusal: ids of the findings; empty where it was merged.
    """

    error: float | None
    moved: float
    refusal: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Equal to PEFT, or refused by name."""
        return bool(self.refusal) if self.error is None else self.error < TOLERANCE < self.moved / 100

    def __str__(self) -> str:
        return f"refused {' '.join(self.refusal)}" if self.error is None else f"{self.error:.0e}"


def options(subject: Subject, method: str) -> dict[str, Any] | None:
    """The configuration of PEFT for a cell; None where the model has nothing that the method is for."""
    common: dict[str, Any] = {"r": 4, "lora_alpha": 6, "target_modules": list(subject.targets)}
    first, second = subject.targets[:2]
    of_method: dict[str, dict[str, Any] | None] = {
        "LoRA": {},
        "rsLoRA": {"use_rslora": True},
        "DoRA": {"use_dora": True},
        "embedding": subject.embedding and {"target_modules": [first, subject.embedding]},
        "patterns": {"rank_pattern": {first: 3}, "alpha_pattern": {first: 17, second: 5}},
        "saved whole": subject.saved and {"target_modules": [first], "modules_to_save": [subject.saved]},
    }
    chosen = of_method[method]
    return None if chosen is None else {**common, **chosen}


def exists(name: str, exporter: str) -> bool:
    """Whether the exporter writes the model: onnxruntime-genai builds decoders of its list, and GPT-2 is none."""
    return exporter != "genai" or name == "Llama"


def measure(name: str, exporter: str, method: str, graph: Path, folder: Path) -> Cell | None:
    """Merge one adapter into the graph of one exporter and compare it with PEFT; None where there is none.

    Args:
        name: of the subject.
        exporter: as :mod:`onnx_models` calls it, or ``genai``.
        method: one of :data:`METHODS`.
        graph: the exported base; of the genai builder, that of :mod:`genai_model`.
        folder: a new folder to work in.
    """
    subject = SUBJECTS[name]
    wanted = options(subject, method)
    if wanted is None:
        return None
    genai = exporter == "genai"
    model = genai_model.torch_model() if genai else subject.make()
    with peft_warnings_off():
        wrapped = make_peft_adapter(model, LoraConfig(**wanted), folder / "adapter")
    adapter, _ = converter.read(folder / "adapter")
    if genai:
        ids = np.random.default_rng(7).integers(3, 39, (2, 9))
        with torch.no_grad():
            expected = wrapped(torch.from_numpy(ids)).logits.numpy()
    else:
        inputs = tiny_models.inputs(subject.make(), seed=7)
        expected = run_torch(wrapped.base_model.model, inputs)

    def run(path: Path) -> np.ndarray:
        return genai_model.logits(path, ids) if genai else run_onnx(path, inputs)

    moved = relative_error(run(graph), expected)
    try:
        merge_onnx(adapter, graph, folder / "merged.onnx")
    except (InvalidInputError, ConflictError) as refusal:
        found = refusal.findings if isinstance(refusal, InvalidInputError) else ()
        rules = sorted({finding.rule for finding in found}) or [str(refusal)]
        return Cell(None, moved, tuple(rules))
    return Cell(relative_error(run(folder / "merged.onnx"), expected), moved)


def export(name: str, exporter: str, path: Path) -> Path:
    """The base as an exporter writes it."""
    return genai_model.MODEL if exporter == "genai" else onnx_models.export(SUBJECTS[name].make(), exporter, path)
