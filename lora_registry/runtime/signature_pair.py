"""An encoder-decoder as two graphs in which every weight but a shared embedding stands once.

``encoder_model``
    (``input_ids``, ``attention_mask``), or ``input_features``, to ``last_hidden_state`` and the keys and values that
    the decoder looks at, ``present.{layer}.encoder.key`` and ``.value`` (batch, heads, encoder sequence, head size).

``decoder_with_past_model``
    ``input_ids``, ``encoder_attention_mask``, ``past_key_values.{layer}.{decoder,encoder}.{key,value}`` to ``logits``
    and ``present.{layer}.decoder.{key,value}``: the names of optimum's file of this name. Past may be empty, so that
    no graph for the first token is needed, of which optimum has another copy of all weights.
"""

from __future__ import annotations

from typing import Any

import torch

from lora_registry.runtime.encoder_decoder import DECODER, ENCODER, MASK
from lora_registry.runtime.model_inputs import SIZES, examples, free_axes
from lora_registry.runtime.signature import Shape, Signature, cache_axes, empty_cache, shapes_of
from lora_registry.runtime.torch_model import TorchModel


class _EncoderView(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """The encoder and what of the decoder depends on nothing else: the keys and values of its cross-attention.

    The decoder is run for one token, of which the exporter drops all that these do not need.
    """

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.wrapped = model.module
        self.names = model.inputs

    def forward(self, first: Any, mask: Any = None) -> tuple[Any, list[tuple[Any, Any]]]:
        given = dict(zip(self.names, (first, mask), strict=False))
        start = torch.zeros((first.shape[0], 1), dtype=torch.int64)
        result = self.wrapped(**given, decoder_input_ids=start, past_key_values=_cache(), use_cache=True)
        layers = result.past_key_values.cross_attention_cache.layers
        return result.encoder_last_hidden_state, [(layer.keys, layer.values) for layer in layers]


class _DecoderView(torch.nn.Module):  # type: ignore[misc]
    """The decoder and the head; of the encoder only its keys and values, and the mask where it has one."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.wrapped = model.module

    def forward(
        self, ids: Any, past: list[tuple[Any, Any]], cross: list[tuple[Any, Any]], mask: Any = None
    ) -> tuple[Any, list[tuple[Any, Any]]]:
        from transformers.modeling_outputs import BaseModelOutput

        cache = _cache()
        for layer, (own, other) in enumerate(zip(past, cross, strict=True)):
            cache.self_attention_cache.update(*own, layer)
            cache.cross_attention_cache.update(*other, layer)
            cache.is_updated[layer] = True
        # What the cross-attention would be computed from, were it not in the cache: only its shape is looked at.
        hidden = cross[0][0][:, 0, :, :1]
        masked = {} if mask is None else {"attention_mask": mask}
        result = self.wrapped(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            decoder_input_ids=ids,
            past_key_values=cache,
            use_cache=True,
            **masked,
        )
        layers = result.past_key_values.self_attention_cache.layers
        return result.logits, [(layer.keys, layer.values) for layer in layers]


def _cache() -> Any:
    from transformers import DynamicCache, EncoderDecoderCache

    return EncoderDecoderCache(DynamicCache(), DynamicCache())


def encoder_and_decoder(model: TorchModel) -> tuple[Signature, Signature]:
    """The signatures of the two graphs.

    Raises:
        UnsupportedError: the decoder keeps something else than keys and values.
    """
    inputs = examples(model, model.inputs)
    if _hears_text(model):
        length = SIZES["encoder_sequence"]
        inputs = {name: torch.ones((SIZES["batch"], length), dtype=torch.int64) for name in inputs}
    start = torch.zeros((SIZES["batch"], 1), dtype=torch.int64)
    with torch.no_grad():
        result = model.module(**inputs, decoder_input_ids=start, past_key_values=_cache(), use_cache=True)
    cross = [(layer.keys, layer.values) for layer in result.past_key_values.cross_attention_cache.layers]
    own = shapes_of(result.past_key_values.self_attention_cache.layers, model)
    return _encoder(model, inputs, len(cross)), _decoder(model, own, cross)


def _hears_text(model: TorchModel) -> bool:
    """Whether the encoder takes tokens, with a mask; of sounds the length is fixed and nothing masked."""
    return "input_ids" in model.inputs


def _encoder(model: TorchModel, inputs: dict[str, Any], layers: int) -> Signature:
    axes: dict[str, Any] = {name: free_axes(model, name) for name in inputs}
    if _hears_text(model):
        free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("encoder_sequence")}
        axes = {name: free for name in inputs}  # noqa: C420 - one record on purpose
    return Signature(
        name=ENCODER,
        view=_EncoderView(model),
        examples=tuple(inputs.values()),
        dynamic_shapes=tuple(axes.values()),
        input_names=model.inputs,
        output_names=("last_hidden_state", *(f"present.{name}" for name in _names("encoder", layers))),
    )


def _decoder(model: TorchModel, own: list[tuple[Shape, Shape]], cross: list[tuple[Any, Any]]) -> Signature:
    dim = torch.export.Dim
    batch = dim("batch")
    layers = len(own)
    ids = torch.ones((SIZES["batch"], SIZES["decoder_sequence"]), dtype=torch.int64)
    mask = torch.ones((SIZES["batch"], SIZES["encoder_sequence"]), dtype=torch.int64)
    text = _hears_text(model)
    cross_axes = cache_axes(layers, "encoder_sequence") if text else [({0: batch},) * 2 for _ in cross]
    past = empty_cache(own, "past_sequence", cross[0][0].dtype)
    names = [f"past_key_values.{name}" for side in ("decoder", "encoder") for name in _names(side, layers)]
    return Signature(
        name=DECODER,
        view=_DecoderView(model),
        examples=(ids, past, cross, *([mask] if text else [])),
        dynamic_shapes=(
            {0: batch, 1: dim("decoder_sequence")},
            cache_axes(layers, "past_sequence"),
            cross_axes,
            *([{0: batch, 1: dim("encoder_sequence")}] if text else []),
        ),
        input_names=("input_ids", *names, *([MASK] if text else [])),
        output_names=("logits", *(f"present.{name}" for name in _names("decoder", layers))),
    )


def _names(side: str, layers: int) -> list[str]:
    return [f"{layer}.{side}.{part}" for layer in range(layers) for part in ("key", "value")]
