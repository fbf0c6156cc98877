"""SmolLM2 with three adapters: one session, a row of a batch, merged at load or into a file; the same text as PEFT."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft_adapters import make_peft_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_registry.adapter import Adapter
from lora_registry.convert.discover import detect
from lora_registry.merge.onnx.model import merge_onnx
from lora_registry.onnx.slots.insert import add_slots
from lora_registry.runtime import ort
from lora_registry.runtime.adapter_pool import AdapterPool
from lora_registry.runtime.batched import BatchedModel
from lora_registry.runtime.generate import generate
from lora_registry.runtime.session import session

NEW = 12
PROMPT = "The lighthouse at the end of the pier"
CONFIGS = {
    "attention": LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    "all": LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", use_rslora=True),
    "mixed": LoraConfig(
        r=4, target_modules=["down_proj", "v_proj"], rank_pattern={"v_proj": 6}, alpha_pattern={"v_proj": 32}
    ),
}
TEXTS = {
    "attention": " is dark, and the boats wait for the morning.",
    "all": " was painted red in nineteen hundred and six.",
    "mixed": " calls the gulls by their names, one after another.",
}
"""What each is trained towards."""


def trained(base: Path, folder: Path, name: str, ids: Sequence[int]) -> tuple[Adapter, list[int]]:
    """An adapter after a few steps towards a text of its own, and what PEFT writes with it, unmerged."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = make_peft_adapter(model, CONFIGS[name], folder / name, seed=len(name), size=0.001)
    batch = torch.tensor([[*ids, *AutoTokenizer.from_pretrained(base)(TEXTS[name])["input_ids"]]])
    optimizer = torch.optim.AdamW([each for each in wrapped.parameters() if each.requires_grad], lr=2e-3)
    for _ in range(4):
        wrapped(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.save_pretrained(folder / name, save_embedding_layers=False)
    adapter, _ = detect(folder / name).read(folder / name)
    return adapter, torch_tokens(wrapped.eval(), ids)


def torch_tokens(model: Any, ids: Sequence[int]) -> list[int]:
    """Greedy decoding by transformers."""
    with torch.no_grad():
        whole = model.generate(
            input_ids=torch.tensor([list(ids)]), max_new_tokens=NEW, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return whole[0, len(ids) :].tolist()


@contextmanager
def files_gone(*paths: Path) -> Iterator[None]:
    """Half a gigabyte each; the disk has better uses for them."""
    yield
    for path in paths:
        path.unlink()


@pytest.mark.slow
def test_the_text_is_pefts_token_for_token(smollm2_dir: Path, smollm2_onnx: Path, tmp_path: Path) -> None:
    """Three adapters and the base, four ways each."""
    ids = AutoTokenizer.from_pretrained(smollm2_dir)(PROMPT)["input_ids"]
    plain = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32).eval()
    texts: dict[str | None, list[int]] = {None: torch_tokens(plain, ids)}
    del plain
    adapters: dict[str, Adapter] = {}
    for name in CONFIGS:
        adapters[name], texts[name] = trained(smollm2_dir, tmp_path, name, ids)
    assert len({tuple(text) for text in texts.values()}) == len(texts)  # each adapter says something else

    for name, adapter in adapters.items():
        assert generate(session(smollm2_onnx, [(adapter, 1.0)]), ids, max_new_tokens=NEW) == texts[name]
        merged = tmp_path / f"{name}.onnx"
        merge_onnx(adapter, smollm2_onnx, merged)
        with files_gone(merged, merged.with_name(merged.name + ".data")):
            assert generate(ort.open_session(merged), ids, max_new_tokens=NEW) == texts[name]

    switchable = tmp_path / "switchable.onnx"
    add_slots(smollm2_onnx, switchable, adapters=list(adapters.values()))
    with files_gone(switchable, switchable.with_name(switchable.name + ".data")):
        pool = AdapterPool(switchable)
        for name, adapter in adapters.items():
            pool.add(name, adapter)
        for name in (None, *reversed(CONFIGS), None):
            assert generate(pool.using(name), ids, max_new_tokens=NEW) == texts[name]
        del pool

    batched = tmp_path / "batched.onnx"
    add_slots(smollm2_onnx, batched, adapters=list(adapters.values()), batched=True)
    with files_gone(batched, batched.with_name(batched.name + ".data")):
        model = BatchedModel(batched)
        model.load(adapters)
        names = [None, *CONFIGS]
        assert rows_of(model, ids, names) == [texts[name] for name in names]


def rows_of(model: BatchedModel, ids: Sequence[int], names: Sequence[str | None]) -> list[list[int]]:
    """Greedy decoding of one prompt by a batch whose rows have other adapters each."""
    from lora_registry.runtime.generate import Decoder

    decoder = Decoder(model.using(names))
    cache, fed = decoder.empty(len(names)), np.tile(np.array(ids), (len(names), 1))
    new: list[Any] = []
    for _ in range(NEW):
        logits, cache = decoder.step(fed, cache)
        fed = logits[:, -1].argmax(axis=-1)[:, None]
        new.append(fed[:, 0])
    return np.stack(new, axis=1).tolist()
