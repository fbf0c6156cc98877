"""Greedy decoding under ONNX Runtime is transformers' greedy decoding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from exported_models import DECODERS, Exported

from lora_registry.errors import UnsupportedError, UsageError
from lora_registry.runtime.generate import generate
from lora_registry.runtime.ort import open_session

Get = Callable[[str], Exported]

PROMPT = [5, 9, 33, 2, 7, 60]


@pytest.mark.parametrize("family", DECODERS)
def test_same_tokens_as_transformers(exported: Get, family: str) -> None:
    """Token for token the same, from a cache that starts empty."""
    made = exported(family)
    wanted = made.module.generate(
        torch.tensor([PROMPT]),
        attention_mask=torch.ones(1, len(PROMPT), dtype=torch.int64),
        max_new_tokens=20,
        min_new_tokens=20,
        do_sample=False,
        pad_token_id=0,
    )[0, len(PROMPT) :].tolist()
    eos = made.module.config.eos_token_id
    assert eos not in wanted  # else transformers' minimum length has changed the text
    assert len(set(wanted)) > 2
    assert generate(open_session(made.path), PROMPT, max_new_tokens=20) == wanted


def test_a_stop_token_ends_the_text(exported: Get) -> None:
    """Decoding ends with the first stop token, which is part of the result."""
    session = open_session(exported("llama-tied").path)
    free = generate(session, PROMPT, max_new_tokens=12)
    stop = free[3]
    assert generate(session, PROMPT, max_new_tokens=12, stop={stop}) == free[: free.index(stop) + 1]


def test_an_empty_prompt_is_refused(exported: Get) -> None:
    """There is no next token of nothing."""
    with pytest.raises(UsageError, match="empty prompt"):
        generate(open_session(exported("gpt2").path), [], max_new_tokens=3)


def test_an_encoder_cannot_generate(exported: Get) -> None:
    """A model without a KV cache is refused by name of what is strange."""
    with pytest.raises(UnsupportedError, match="no decoder with a KV cache: token_type_ids"):
        generate(open_session(exported("bert").path), PROMPT, max_new_tokens=3)
