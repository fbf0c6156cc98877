"""Bases and adapters to merge: Llama shapes in bfloat16, of any size, in shards of 1 GB, without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

SHARD = 1_000_000_000
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Widths:
    """Of a Llama: what its shapes follow from."""

    hidden: int = 2048
    intermediate: int = 8192
    keys: int = 512
    vocabulary: int = 32000

    def layer(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.keys, self.hidden),
            "self_attn.v_proj": (self.keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }

    def config(self, layers: int) -> dict[str, object]:
        """What a merge reads of ``config.json``, and what a loader needs."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "dtype": "bfloat16",
            "num_hidden_layers": layers,
        }


ONE_B = Widths()
EIGHT_B = Widths(4096, 14336, 1024, 128256)
"""Of Llama 3 8B, which has 32 layers."""


def shapes(layers: int, widths: Widths = ONE_B) -> dict[str, tuple[int, ...]]:
    """Every tensor of a model of ``layers`` layers, by name."""
    found: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (widths.vocabulary, widths.hidden),
        "model.embed_tokens.weight": (widths.vocabulary, widths.hidden),
        "model.norm.weight": (widths.hidden,),
    }
    for layer in range(layers):
        place = f"model.layers.{layer}"
        found |= {f"{place}.{module}.weight": shape for module, shape in widths.layer().items()}
        found |= {f"{place}.{norm}_layernorm.weight": (widths.hidden,) for norm in ("input", "post_attention")}
    return found


def layers_for(size: int, widths: Widths = ONE_B) -> int:
    """How many layers make about ``size`` bytes."""
    whole, one = _bytes(shapes(1, widths)), _bytes(shapes(2, widths)) - _bytes(shapes(1, widths))
    return max(1, 1 + round((size - whole) / one))


def _bytes(tensors: dict[str, tuple[int, ...]]) -> int:
    return sum(2 * int(np.prod(shape)) for shape in tensors.values())


def make_base(folder: Path, size: int, *, sparse: bool = False, widths: Widths = ONE_B) -> Path:
    """A base of about ``size`` bytes; ``sparse`` makes files of zeros that take no room on the disk."""
    folder.mkdir()
    layers = layers_for(size, widths)
    tensors = shapes(layers, widths)
    shards = list(_shards(tensors))
    weight_map = {}
    normal = np.random.default_rng(0).normal(size=1 << 22, scale=0.02).astype(np.float32).astype(ml_dtypes.bfloat16)
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        if sparse:
            _write_zeros(folder / file, {name: tensors[name] for name in names})
        else:
            arrays = {name: np.resize(normal, tensors[name]) for name in names}
            save_file(arrays, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": _bytes(tensors)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(widths.config(layers)))
    return folder


def _shards(tensors: dict[str, tuple[int, ...]]) -> Iterator[list[str]]:
    names, size = [], 0
    for name in sorted(tensors):
        more = 2 * int(np.prod(tensors[name]))
        if names and size + more > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += more
    yield names


def _write_zeros(path: Path, tensors: dict[str, tuple[int, ...]]) -> None:
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + position)


def make_adapter(folder: Path, base: Path, rank: int, modules: tuple[str, ...], widths: Widths = ONE_B) -> Path:
    """A random LoRA in PEFT's format; its change is about a hundredth of the weights."""
    folder.mkdir()
    layers = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    rng = np.random.default_rng(rank)
    factors = {}
    for name, shape in shapes(layers, widths).items():
        if name.split(".")[-2] in modules:
            place = "base_model.model." + name.removesuffix(".weight")
            factors[f"{place}.lora_A.weight"] = rng.normal(size=(rank, shape[1])).astype(np.float32)
            factors[f"{place}.lora_B.weight"] = rng.normal(size=(shape[0], rank)).astype(np.float32) * np.float32(
                1e-4 / rank**0.5
            )
    save_file(factors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(modules),
        "bias": "none",
        "base_model_name_or_path": str(base),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
