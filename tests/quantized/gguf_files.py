"""GGUF files by the gguf package."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Ggml
from gguf import GGUFWriter


def write(path: Path, architecture: str, tensors: dict[str, tuple[np.ndarray, Ggml]], **values: int) -> Path:
    """A GGUF file by the gguf package; arrays are float32, and are quantized to the type beside them."""
    writer = GGUFWriter(path, architecture)
    for key, value in values.items():
        writer.add_uint32(f"{architecture}.{key.replace('__', '.')}", value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_array("some.numbers", [1, 2, 3])
    for name, (array, kind) in tensors.items():
        if kind is Ggml.F32:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def model(path: Path, architecture: str, kind: Ggml = Ggml.Q8_0) -> Path:
    """A model of one layer with heads of 16, two of queries to one of keys."""
    rng = np.random.default_rng(0)
    shapes = {
        "token_embd.weight": (40, 64),
        "output_norm.weight": (64,),
        "output.weight": (40, 64),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.ffn_norm.weight": (64,),
        "blk.0.attn_q.weight": (64, 64),
        "blk.0.attn_k.weight": (32, 64),
        "blk.0.attn_v.weight": (32, 64),
        "blk.0.attn_output.weight": (64, 64),
        "blk.0.ffn_gate.weight": (96, 64),
        "blk.0.ffn_up.weight": (96, 64),
        "blk.0.ffn_down.weight": (64, 96),
    }
    if architecture == "qwen2":
        shapes |= {"blk.0.attn_q.bias": (64,), "blk.0.attn_k.bias": (32,), "blk.0.attn_v.bias": (32,)}
    tensors = {
        name: (rng.standard_normal(shape).astype(np.float32), kind if len(shape) == 2 else Ggml.F32)
        for name, shape in shapes.items()
    }
    return write(
        path,
        architecture,
        tensors,
        block_count=1,
        embedding_length=64,
        feed_forward_length=96,
        context_length=32,
        vocab_size=40,
        attention__head_count=4,
        attention__head_count_kv=2,
    )
