"""The inputs of a model by name: their axes, which of them are free, and small examples to trace with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from lora_registry.runtime.torch_model import TorchModel

Axis = str | int
"""An axis of an input: the name of a free one, or the size of one that the model fixes."""

SIZES = {
    "batch": 2,
    "sequence": 4,
    "past_sequence": 3,
    "encoder_sequence": 5,
    "decoder_sequence": 4,
    "image_batch": 3,
    "height": 64,
    "width": 96,
}
"""Sizes of the free axes in examples; those of one input differ, so that no axis passes for another."""

_TOKENS = frozenset({"input_ids", "attention_mask", "token_type_ids", "position_ids"})
_ZEROS = frozenset({"token_type_ids", "position_ids"})


def axes_of(model: TorchModel, name: str) -> tuple[Axis, ...]:
    """The axes of an input, in order.

    Tokens are (batch, sequence); images (batch, channels, height, width), of which height and width are free where
    the configuration states none; spectra (batch, mel bins, frames), all frames that the model has positions for.
    """
    config = model.module.config
    if name in _TOKENS:
        return ("batch", "sequence")
    if name == "input_features":
        return ("batch", config.num_mel_bins, 2 * config.max_source_positions)  # the first layers halve the frames
    images = getattr(config, "vision_config", config)
    size = getattr(images, "image_size", None)
    height, width = size if isinstance(size, (list, tuple)) else (size or "height", size or "width")
    # Texts and images of one run are counted apart.
    batch = "image_batch" if "input_ids" in model.inputs else "batch"
    return (batch, images.num_channels, height, width)


def examples(model: TorchModel, names: Iterable[str]) -> dict[str, Any]:
    """Inputs to trace ``model`` with: ones for tokens and masks, zeros for types, positions and floats."""
    return {name: _example(model, name) for name in names}


def _example(model: TorchModel, name: str) -> torch.Tensor:
    shape = [SIZES[axis] if isinstance(axis, str) else axis for axis in axes_of(model, name)]
    if name in _TOKENS:
        return torch.full(shape, 0 if name in _ZEROS else 1, dtype=torch.int64)
    return torch.zeros(shape, dtype=next(model.module.parameters()).dtype)


def free_axes(model: TorchModel, name: str) -> dict[int, Any]:
    """The free axes of an input as ``torch.export`` takes them: number to dimension."""
    return {number: torch.export.Dim(axis) for number, axis in enumerate(axes_of(model, name)) if isinstance(axis, str)}
