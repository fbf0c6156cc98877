"""The tiny Llama that onnxruntime-genai's builder wrote (``tests/onnx/genai/make.py``), and how it is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
from transformers import LlamaForCausalLM

FOLDER = Path(__file__).parents[1] / "onnx" / "genai"
BASE = FOLDER / "base"
MODEL = FOLDER / "model.onnx"


def torch_model() -> LlamaForCausalLM:
    """The model of which it is the graph."""
    return LlamaForCausalLM.from_pretrained(BASE).eval()


def logits(path: Path, ids: np.ndarray) -> np.ndarray:
    """What the graph at ``path`` says, with an empty cache."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    empty = np.zeros((len(ids), 2, 0, 16), np.float32)
    feeds.update({each.name: empty for each in session.get_inputs() if each.name.startswith("past_key_values")})
    return session.run(["logits"], feeds)[0]
