"""Inputs to compare models with: random tokens of varied lengths, images and sounds, the same for the same seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_registry.runtime.torch_model import Task

if TYPE_CHECKING:
    from lora_registry.runtime.torch_model import TorchModel

LONGEST = 24
"""Tokens of the longest sample: enough for positions and masks to matter."""

_DECODED = 8  # tokens that the decoder of an encoder-decoder is given

_FREE_SIDE = 64  # pixels of an image where the model says nothing of its size

_FLOATS = ("pixel_values", "input_features")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Samples:
    """One padded batch.

    Attributes:
        ids: int64 (batch, sequence); the pad token where the mask is 0. No columns for a model without tokens.
        mask: int64 (batch, sequence); 1 for a token.
        types: int64 (batch, sequence); the second half of each sample is of type 1.
        floats: images and spectra, float32, by the name of the input.
        decoded: int64 (batch, sequence): tokens of the decoder of an encoder-decoder; None for other models.
    """

    ids: Array
    mask: Array
    types: Array
    floats: Mapping[str, Array] = field(default_factory=dict)
    decoded: Array | None = None

    @property
    def positions(self) -> Array:
        """(batch, sequence): how many tokens stand before each token."""
        positions: Array = np.maximum(self.mask.cumsum(axis=1) - 1, 0)
        return positions

    @property
    def inputs(self) -> dict[str, Array]:
        """The same under the names that transformers gives a model's inputs."""
        decoded = {} if self.decoded is None else {"decoder_input_ids": self.decoded}
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask,
            "position_ids": self.positions,
            "token_type_ids": self.types,
            **self.floats,
            **decoded,
        }

    @property
    def tokens(self) -> Array:
        """int64 (batch, sequence): 1 where the outputs of a token count, of the decoder where there are two."""
        return self.mask if self.decoded is None else np.ones_like(self.decoded)


def draw(model: TorchModel, count: int, seed: int, *, rows: Sequence[int] = ()) -> Samples:
    """Samples for a model.

    Decoders are padded on the left, as for generation, the others on the right; the first sample is not
    padded at all.

    Args:
        model: its configuration tells vocabulary, pad token, longest sequence and the size of images.
        count: number of samples.
        seed: of numpy's PCG64 generator.
        rows: tokens that an adapter changes by row; about half of all tokens are drawn from them.
    """
    random = np.random.default_rng(seed)
    config = model.module.config.get_text_config()
    pair = model.task is Task.ENCODER_DECODER
    if "input_ids" in model.inputs:
        longest = min(LONGEST, getattr(config, "max_position_embeddings", LONGEST) - 4)  # RoBERTa starts at position 2
        lengths = random.integers(max(2, longest // 3), longest + 1, size=count)
        lengths[0] = longest
        ids, pad = _tokens(random, config, (count, longest), rows)
        column = np.arange(longest)[None, :]
        left = model.task is Task.DECODER
        real = (column >= longest - lengths[:, None]) if left else (column < lengths[:, None])
        types = (real & (column >= lengths[:, None] // 2)).astype(np.int64)
        ids, mask = np.where(real, ids, pad), real.astype(np.int64)
    else:
        ids = mask = types = np.zeros((count, 0), dtype=np.int64)
    return Samples(
        ids,
        mask,
        types,
        floats={name: _floats(random, model, name, count) for name in model.inputs if name in _FLOATS},
        decoded=_tokens(random, config, (count, _DECODED), rows)[0] if pair else None,
    )


def _floats(random: np.random.Generator, model: TorchModel, name: str, count: int) -> Array:
    from lora_registry.runtime.model_inputs import axes_of

    shape = [_FREE_SIDE if isinstance(axis, str) else axis for axis in axes_of(model, name)[1:]]
    return random.standard_normal((count, *shape), dtype=np.float32)


def _tokens(random: np.random.Generator, config: Any, shape: tuple[int, int], rows: Sequence[int]) -> tuple[Array, int]:
    """Any tokens but the pad token, which is told too."""
    pad = config.pad_token_id if isinstance(config.pad_token_id, int) else 0
    ids = random.integers(0, config.vocab_size - 1, size=shape)
    ids += ids >= pad
    known = [row for row in rows if row < config.vocab_size and row != pad]
    if known:
        ids = np.where(random.random(ids.shape) < 0.5, random.choice(known, size=ids.shape), ids)
    return ids.astype(np.int64), pad
