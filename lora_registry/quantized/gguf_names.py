"""GGUF's names and rows as those of transformers, for the architectures where both are known to be the same weights.

llama.cpp renames tensors, and its converter of ``llama`` models permutes the rows of queries and keys, from rotary
halves to pairs. Other architectures change values too (Gemma adds 1 to its norms), so that only those below are
mapped; of any other, the tensors keep their GGUF names (llama.cpp ``convert_hf_to_gguf.py``; transformers 5.23,
``modeling_gguf_pytorch_utils.py``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from lora_registry.quantized.gguf_file import GgufFile, GgufWeight
from lora_registry.quantized.weight import Quantization, Scheme

_ARCHITECTURES = ("llama", "qwen2", "qwen3")
_PERMUTED = "llama"

_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_COMPUTED = "rope_freqs.weight"  # transformers computes these factors from its configuration


def quantization(file: GgufFile, names: frozenset[str]) -> Quantization:
    """The tensors of a file as a quantization; those that are quantized are written as BF16.

    Args:
        file: an open GGUF file.
        names: those that an adapter has for its targets. Where one is a GGUF name, the file keeps its own names.
    """
    mapped = None if names & file.weights.keys() else transformers_weights(file)
    weights: dict[str, GgufWeight] = dict(file.weights) if mapped is None else mapped
    kinds = Counter(weight.type.name for weight in weights.values() if weight.is_quantized)
    scheme = Scheme("gguf", {"types": "+".join(sorted(kinds))} if kinds else {})
    left = file.weights.keys() - {weight.name for weight in weights.values()}
    written = {name: "BF16" for name, weight in weights.items() if weight.is_quantized}
    return Quantization(scheme, weights, frozenset(left), written)


def transformers_weights(file: GgufFile) -> dict[str, GgufWeight] | None:
    """The tensors under transformers' names, and with its rows; None where not every one of them is known."""
    architecture = file.values.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        return None
    result = {}
    for name, weight in file.weights.items():
        if name == _COMPUTED:
            continue
        mapped = _transformers_name(name)
        if mapped is None:
            return None
        if architecture == _PERMUTED and ".attn_q." in name:
            restored = _restored(weight, _heads(file.values, "head_count"))
        elif architecture == _PERMUTED and ".attn_k." in name:
            restored = _restored(weight, _heads(file.values, "head_count_kv") or _heads(file.values, "head_count"))
        else:
            restored = weight
        if restored is None:
            return None
        result[mapped] = restored
    return result


def _transformers_name(name: str) -> str | None:
    if name in _OUTER:
        return _OUTER[name]
    match = _LAYER.fullmatch(name)
    if match is None or match[2] not in _INNER:
        return None
    return f"model.layers.{match[1]}.{_INNER[match[2]]}.{match[3]}"


def _heads(values: Mapping[str, object], key: str) -> int:
    count = values.get(f"{_PERMUTED}.attention.{key}")
    return count if isinstance(count, int) else 0


def _restored(weight: GgufWeight, heads: int) -> GgufWeight | None:
    """The weight with the rows of each head in halves again; None where there is no number of heads that fits."""
    rows = weight.shape[0]
    if len(weight.shape) != 2 or heads <= 0 or rows % (2 * heads):
        return None
    order = np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)
    return replace(weight, order=order)
