"""Train a small LoRA with PEFT that answers like a pilot on the radio, and save it as PEFT saves.

Forty lines of ``data.jsonl`` are enough for a change of tone; France is not among them, so that the question
of the quickstart is one the adapter has never seen. Rank 8, alpha 16, every linear layer of the decoder,
a plain loop, fixed seeds: the same machine makes the same adapter again.

Usage: ``python examples/quickstart/train.py BASE OUT``
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, TaskType, get_peft_model
from prepare import SMOLLM2
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

DATA = Path(__file__).with_name("data.jsonl")
SEED, EPOCHS, BATCH, LEARNING_RATE = 7, 4, 8, 1e-3
IGNORED = -100  # the label that torch's cross entropy leaves out

CARD = """---
base_model: {base.name}
library_name: peft
license: {base.license}
tags: [lora, tone]
---

# Radio tone for {base.name}

Answers in one sentence, the way a pilot talks to a tower. Trained by the quickstart of loreg on its own forty
lines. The license is that of the base model.
"""


def train(base: Path, out: Path) -> None:
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # PEFT uses an old name of theirs
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(
            task_type=TaskType.CAUSAL_LM,
            r=8,
            lora_alpha=16,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        ),
    )
    model.train()
    examples = [_encode(tokenizer, **json.loads(line)) for line in DATA.read_text(encoding="utf-8").splitlines()]
    steps = EPOCHS * len(examples) // BATCH
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    shuffle = random.Random(SEED)
    for epoch in range(1, EPOCHS + 1):
        shuffle.shuffle(examples)
        total = 0.0
        for start in range(0, len(examples), BATCH):
            loss = model(**_collate(examples[start : start + BATCH], tokenizer.pad_token_id)).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch}/{EPOCHS}: loss {total * BATCH / len(examples):.3f}", flush=True)
    _save(model, out)


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """Token ids of one conversation and its labels: only the answer is to be learned."""
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, return_dict=False
    )
    answered = tokenizer(answer + tokenizer.eos_token)["input_ids"]
    return asked + answered, [IGNORED] * len(asked) + answered


def _collate(examples: list[tuple[list[int], list[int]]], padding: int) -> dict[str, torch.Tensor]:
    """Pad a batch on the right: ids, mask and labels, each (batch, longest) int64."""
    longest = max(len(ids) for ids, _ in examples)
    return {
        "input_ids": torch.tensor([ids + [padding] * (longest - len(ids)) for ids, _ in examples]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in examples]),
        "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in examples]),
    }


def _save(model: torch.nn.Module, out: Path) -> None:
    """Save as PEFT does, whole or not at all, with the base under its name instead of the path of this machine."""
    model.peft_config["default"].base_model_name_or_path = SMOLLM2.name
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".training-") as scratch:
        made = Path(scratch) / out.name
        model.save_pretrained(made, save_embedding_layers=False)
        (made / "README.md").write_text(CARD.format(base=SMOLLM2), encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        made.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: train.py BASE OUT")
    train(Path(sys.argv[1]), Path(sys.argv[2]))
