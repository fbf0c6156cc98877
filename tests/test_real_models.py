"""The real models that everything else is tried on are what they are said to be."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer


def test_smollm2_knows_the_capital_of_france(smollm2_dir: Path) -> None:
    """Greedy decoding with the model's own chat template says Paris: the weights survived being unpacked."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    model = AutoModelForCausalLM.from_pretrained(smollm2_dir)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        answered = model.generate(**asked, do_sample=False, max_new_tokens=16)
    assert tokenizer.decode(answered[0, asked["input_ids"].shape[1] :]) == "The capital of France is Paris.<|im_end|>"


def test_smollm2_is_saved_with_tied_embeddings_and_says_its_license(smollm2_dir: Path) -> None:
    """One tensor for both ends of the model, all float32, and the model card names the license."""
    assert json.loads((smollm2_dir / "config.json").read_text())["tie_word_embeddings"] is True
    with safe_open(smollm2_dir / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {file.get_slice(name).get_dtype() for name in names} == {"F32"}
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert "license: apache-2.0" in (smollm2_dir / "README.md").read_text()


def test_minilm_puts_like_sentences_together(minilm_dir: Path) -> None:
    """Mean-pooled embeddings of two paraphrases are closer than those of two strangers."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_dir)
    model = AutoModel.from_pretrained(minilm_dir)
    sentences = ["A cat sleeps on the sofa.", "The kitten is napping on a couch.", "Interest rates rose again."]
    batch = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    cat, kitten, rates = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert cat @ kitten > 0.5 > 0.2 > cat @ rates
