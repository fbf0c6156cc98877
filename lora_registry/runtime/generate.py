"""Decoding with a KV cache under ONNX Runtime; numpy in, numpy out."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lora_registry.errors import UnsupportedError, UsageError
from lora_registry.runtime import ort

_PAST = re.compile(r"past_key_values\.(.+)")
_FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_TOKEN_INPUTS = {"input_ids", "attention_mask", "position_ids"}


@dataclass(frozen=True, slots=True)
class Cache:
    """What a decoder remembers.

    Attributes:
        mask: int64 (batch, past): 1 for a token, 0 for padding.
        past: ``past_key_values.…`` to its array (batch, heads, past, head size).
    """

    mask: np.ndarray[Any, Any]
    past: Mapping[str, Any] = field(default_factory=dict)


class Decoder:
    """A decoder with a KV cache, as :func:`lora_registry.runtime.export.export_model`, optimum and genai write them.

    Args:
        session: an open session.

    Raises:
        UnsupportedError: its inputs are not those of such a decoder.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        inputs = {value.name: value for value in session.get_inputs()}
        self._past = {name: value for name, value in inputs.items() if _PAST.fullmatch(name)}
        self._inputs = inputs.keys() - self._past.keys()
        strange = self._inputs - _TOKEN_INPUTS
        if strange or not self._past:
            raise UnsupportedError(f"no decoder with a KV cache: {', '.join(sorted(strange)) or 'no past_key_values'}")

    def empty(self, batch: int) -> Cache:
        """The cache before the first token.

        Raises:
            UnsupportedError: the cache has an element type or a free axis that is not known here.
        """
        past = {}
        for name, value in self._past.items():
            heads, size = value.shape[1], value.shape[3]
            if value.type not in _FLOATS or not isinstance(heads, int) or not isinstance(size, int):
                raise UnsupportedError(f"the cache {name} is {value.type} {value.shape}")
            past[name] = np.zeros((batch, heads, 0, size), dtype=_FLOATS[value.type])
        return Cache(np.zeros((batch, 0), dtype=np.int64), past)

    def step(
        self, ids: np.ndarray[Any, Any], cache: Cache, mask: np.ndarray[Any, Any] | None = None
    ) -> tuple[Any, Cache]:
        """Feed tokens.

        Args:
            ids: int64 (batch, sequence).
            cache: what earlier steps left.
            mask: int64 (batch, sequence), 0 for padding, which stands on the left; None for no padding.

        Returns:
            Logits (batch, sequence, vocabulary) and the cache with these tokens in it.
        """
        whole = np.concatenate([cache.mask, np.ones_like(ids) if mask is None else mask], axis=1)
        positions = np.maximum(whole.cumsum(axis=1) - 1, 0)[:, -ids.shape[1] :]
        tokens = {"input_ids": ids, "attention_mask": whole, "position_ids": positions}
        feeds = {name: tokens[name] for name in self._inputs} | dict(cache.past)
        result = ort.run(self._session, feeds)
        past = {name: result[_PAST.sub(r"present.\1", name)] for name in self._past}
        return result["logits"], Cache(whole, past)


def generate(session: Any, prompt: Sequence[int], *, max_new_tokens: int, stop: Collection[int] = ()) -> list[int]:
    """Greedy decoding of one sequence.

    Args:
        session: an open session of a decoder with a KV cache.
        prompt: token ids, at least one.
        max_new_tokens: how many to add at most.
        stop: token ids that end the text; the one that does is part of the result.

    Returns:
        The new token ids.

    Raises:
        UsageError: the prompt is empty.
        UnsupportedError: the session is no decoder with a KV cache.
    """
    if not prompt:
        raise UsageError("an empty prompt has no next token")
    decoder = Decoder(session)
    cache = decoder.empty(1)
    ids = np.asarray([list(prompt)], dtype=np.int64)
    new: list[int] = []
    while len(new) < max_new_tokens:
        logits, cache = decoder.step(ids, cache)
        token = int(logits[0, -1].argmax())
        new.append(token)
        if token in stop:
            break
        ids = np.asarray([[token]], dtype=np.int64)
    return new
