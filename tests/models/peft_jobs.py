"""One job of each sort: a base model and the PEFT configuration of an adapter for it.

Together they cover the kinds of target that PEFT can train, each on an architecture where it is likely to go wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, TaskType


@dataclass(frozen=True, slots=True)
class Job:
    """A base and what is trained on it.

    Attributes:
        model: a key of ``tiny_models.MODELS``.
        settings: keyword arguments of ``LoraConfig``; rank 4 and alpha 10 where they say nothing.
        tied: policy for tied embeddings with which a merge does what PEFT's does.
    """

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    tied: str = "error"

    def config(self) -> LoraConfig:
        return LoraConfig(**{"r": 4, "lora_alpha": 10, **self.settings})


_BERT_LAYERS = ["query", "key", "value", "dense"]

JOBS: dict[str, Job] = {
    # Llama: grouped-query attention, the embeddings tied and not
    "llama-lora": Job("llama-tied", {"target_modules": "all-linear"}),
    "llama-rslora-patterns": Job(
        "llama-untied",
        {
            "target_modules": "all-linear",
            "use_rslora": True,
            "rank_pattern": {r"layers\.0\.self_attn\.q_proj": 7, "down_proj": 3},
            "alpha_pattern": {"q_proj": 5, r"^model\.layers\.1\.mlp\.up_proj": 2},
        },
    ),
    "llama-dora": Job("llama-untied", {"target_modules": ["q_proj", "v_proj", "down_proj"], "use_dora": True}),
    "llama-tied-embedding": Job("llama-tied", {"target_modules": ["embed_tokens", "o_proj"]}, tied="both"),
    "llama-untied-embedding": Job("llama-untied", {"target_modules": ["embed_tokens", "lm_head", "k_proj"]}),
    "llama-saved-head": Job("llama-untied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "llama-tokens": Job(
        "llama-untied", {"target_modules": ["v_proj"], "trainable_token_indices": {"embed_tokens": [7, 3, 42]}}
    ),
    # GPT-2: Conv1D, stored as (in, out)
    "gpt2-lora": Job("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
    "gpt2-dora": Job("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, "use_dora": True}),
    # BERT: biases everywhere; a classifier that PEFT saves whole
    "bert-lora-bias": Job("bert", {"target_modules": _BERT_LAYERS, "lora_bias": True}),
    "bert-dora-embedding": Job("bert", {"target_modules": ["word_embeddings", "value"], "use_dora": True}),
    "bert-trained-biases": Job("bert", {"target_modules": ["query", "value"], "bias": "lora_only"}),
    "bert-classifier": Job("bert-sequence", {"target_modules": ["query", "value"], "task_type": TaskType.SEQ_CLS}),
    "bert-tagger": Job("bert-token", {"target_modules": ["query", "dense"], "task_type": TaskType.TOKEN_CLS}),
    "roberta-tagger": Job(
        "roberta-token",
        {"target_modules": r".*layer\.\d+\..*(query|key|dense)", "task_type": TaskType.TOKEN_CLS, "use_rslora": True},
    ),
    "deberta-classifier": Job(
        "deberta-sequence",
        {"target_modules": ["query_proj", "key_proj", "value_proj", "dense"], "task_type": TaskType.SEQ_CLS},
    ),
    # Convolutions
    "cnn-lora": Job("cnn", {"target_modules": ["stem", "pointwise", "along", "head"]}),
    "cnn-dora": Job("cnn", {"target_modules": ["stem", "pointwise", "head"], "use_dora": True}),
}
