"""Makes this folder again: a tiny Llama with random weights, and what onnxruntime-genai's model builder makes of it.

The builder is no dependency of the tests, so its output lies here. To make it anew, in an environment that has
onnxruntime-genai 0.18, torch, transformers and tokenizers: ``python tests/onnx/genai/make.py``.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent


def main() -> None:
    """Two layers, grouped heads of 16, which is what the attention of ONNX Runtime takes."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + parameter.mean().round())
    with tempfile.TemporaryDirectory() as name:
        base, out = Path(name) / "base", Path(name) / "out"
        model.save_pretrained(base)
        words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", unk_token="w0").save_pretrained(
            base
        )
        builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", "tiny"]
        options = ["-i", str(base), "-o", str(out), "-p", "fp32", "-e", "cpu", "-c", str(Path(name) / "cache")]
        subprocess.run([*builder, *options], check=True)
        (HERE / "base").mkdir(exist_ok=True)
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(base / file, HERE / "base" / file)
        for file in ("model.onnx", "model.onnx.data"):
            shutil.copyfile(out / file, HERE / file)


if __name__ == "__main__":
    main()
