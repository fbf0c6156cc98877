"""What an exported folder holds beside the graphs: configuration, tokenizer, and how onnxruntime-genai runs it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from lora_registry.runtime.genai_config import FILE, genai_config
from lora_registry.runtime.signature import MODEL
from lora_registry.runtime.torch_model import Task, TorchModel

COMPANIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "spiece.model",
    "source.spm",
    "target.spm",
    "chat_template.jinja",
    "chat_template.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
)
"""Files of a model that programs need which run the graph; no weights, and no code."""


def write_companions(model: TorchModel, folder: Path) -> None:
    """Copy what of :data:`COMPANIONS` the model has; of a decoder write ``genai_config.json`` too.

    Raises:
        UnsupportedError, InvalidInputError: as :func:`~lora_registry.runtime.genai_config.genai_config`.
        OSError: reading or writing failed.
    """
    for name in COMPANIONS:
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, folder / name)
    if model.task is Task.DECODER:
        document = genai_config(model, f"{MODEL}.onnx", cuda=_is_bfloat16(model))
        (folder / FILE).write_text(json.dumps(document, indent=4, ensure_ascii=False) + "\n", encoding="utf-8")


def _is_bfloat16(model: TorchModel) -> bool:
    return str(next(model.module.parameters()).dtype) == "torch.bfloat16"
