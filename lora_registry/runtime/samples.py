"""Inputs to compare models with: random tokens of varied lengths, the same for the same seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lora_registry.runtime.torch_model import Task

LONGEST = 24
"""Tokens of the longest sample: enough for positions and masks to matter."""

Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Samples:
    """One padded batch.

    Attributes:
        ids: (batch, sequence); the pad token where the mask is 0.
        mask: (batch, sequence); 1 for a token.
        types: (batch, sequence); the second half of each sample is of type 1.
    """

    ids: Array
    mask: Array
    types: Array

    @property
    def positions(self) -> Array:
        """(batch, sequence): how many tokens stand before each token."""
        positions: Array = np.maximum(self.mask.cumsum(axis=1) - 1, 0)
        return positions

    @property
    def inputs(self) -> dict[str, Array]:
        """The same under the names that transformers gives a model's inputs."""
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "token_type_ids": self.types,
        }


def draw(config: Any, task: Task, count: int, seed: int, *, rows: Sequence[int] = ()) -> Samples:
    """Samples for a model.

    Decoders are padded on the left, as for generation, the others on the right; the first sample is not
    padded at all.

    Args:
        config: the model's configuration, of which vocabulary, pad token and longest sequence are used.
        task: what the model computes.
        count: number of samples.
        seed: of numpy's PCG64 generator.
        rows: tokens that an adapter changes by row; about half of all tokens are drawn from them.
    """
    random = np.random.default_rng(seed)
    longest = min(LONGEST, getattr(config, "max_position_embeddings", LONGEST) - 4)  # RoBERTa starts at position 2
    lengths = random.integers(max(2, longest // 3), longest + 1, size=count)
    lengths[0] = longest
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    ids = random.integers(0, config.vocab_size - 1, size=(count, longest))
    ids += ids >= pad  # any token but the pad token
    known = [row for row in rows if row < config.vocab_size and row != pad]
    if known:
        ids = np.where(random.random(ids.shape) < 0.5, random.choice(known, size=ids.shape), ids)
    column = np.arange(longest)[None, :]
    left = task is Task.DECODER
    mask = (column >= longest - lengths[:, None]) if left else (column < lengths[:, None])
    types = mask & (column >= lengths[:, None] // 2)
    return Samples(np.where(mask, ids, pad).astype(np.int64), mask.astype(np.int64), types.astype(np.int64))
