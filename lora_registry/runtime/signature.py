"""The inputs and outputs of an exported model: names as onnxruntime-genai and optimum use them, free axes, examples.

Decoders take the KV cache as plain tensors, ``past_key_values.{layer}.key`` and ``.value`` of shape
(batch, heads, past, head size), and give ``present.{layer}.key`` and ``.value``. Past may be empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from lora_registry.errors import UnsupportedError
from lora_registry.runtime.model_inputs import SIZES, examples, free_axes
from lora_registry.runtime.torch_model import Task, TorchModel

INNER = "wrapped"
"""Attribute under which a view holds the model; the exporter puts it before every name, and export takes it off."""

MODEL = "model"
"""Name of the graph of a model that is one."""

Shape = tuple[int, int]
"""Heads and head size of a cached tensor."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What the exporter is given for one graph.

    Attributes:
        name: of the file in an output folder, without ``.onnx``.
        view: a module whose positional inputs and flat outputs are those of the ONNX file.
        examples: positional inputs to trace with.
        dynamic_shapes: free axes of each of them, as ``torch.export`` takes them.
        input_names: names, the KV cache flattened.
        output_names: names, the KV cache flattened.
    """

    name: str
    view: torch.nn.Module
    examples: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def signatures_of(model: TorchModel) -> tuple[Signature, ...]:
    """The signatures of the ONNX files that are made from ``model``: one, or two of an encoder-decoder.

    Raises:
        UnsupportedError: a decoder that keeps something else than keys and values, such as a state.
    """
    if model.task is Task.ENCODER_DECODER:
        from lora_registry.runtime.signature_pair import encoder_and_decoder

        return encoder_and_decoder(model)
    return (_decoder(model) if model.task is Task.DECODER else _encoder(model),)


class _EncoderView(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Inputs by position, outputs as a tuple."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.wrapped = model.module
        self.names, self.outputs = model.inputs, model.outputs
        self.options = {"use_cache": False} if getattr(model.module.config, "use_cache", None) is not None else {}

    def forward(self, first: Any, second: Any = None, third: Any = None) -> tuple[Any, ...]:
        given = dict(zip(self.names, (first, second, third), strict=False))
        result = self.wrapped(**given, **self.options)
        return tuple(result[name] for name in self.outputs)


class _DecoderView(torch.nn.Module):  # type: ignore[misc]
    """The KV cache as (key, value) pairs in and out; ``ids`` are the token inputs by position."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.wrapped = model.module
        self.names = model.inputs

    def forward(self, ids: tuple[Any, ...], past: list[tuple[Any, Any]]) -> tuple[Any, list[tuple[Any, Any]]]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        result = self.wrapped(**dict(zip(self.names, ids, strict=True)), past_key_values=cache, use_cache=True)
        return result.logits, [(layer.keys, layer.values) for layer in result.past_key_values.layers]


def cache_shapes(model: TorchModel) -> list[tuple[Shape, Shape]]:
    """(heads, head size) of the key and of the value of every layer, found by running one token.

    Raises:
        UnsupportedError: the model keeps something else than keys and values.
    """
    token = torch.zeros((1, 1), dtype=torch.int64)
    with torch.no_grad():
        result = model.module(input_ids=token, use_cache=True)
    return shapes_of(getattr(result.get("past_key_values"), "layers", ()), model)


def shapes_of(layers: Iterable[Any], model: TorchModel) -> list[tuple[Shape, Shape]]:
    """(heads, head size) of the key and of the value of the layers of one of transformers' caches.

    Raises:
        UnsupportedError: a layer keeps something else than keys and values, or there is none.
    """
    shapes = []
    for layer in layers:
        pair = (getattr(layer, "keys", None), getattr(layer, "values", None))
        if not all(isinstance(part, torch.Tensor) and part.dim() == 4 for part in pair):
            raise UnsupportedError(f"{model.architecture} keeps {type(layer).__name__}, not keys and values")
        key, value = ((part.shape[1], part.shape[3]) for part in pair if part is not None)
        shapes.append((key, value))
    if not shapes:
        raise UnsupportedError(f"{model.architecture} gives no KV cache")
    return shapes


def empty_cache(shapes: Iterable[tuple[Shape, Shape]], axis: str, dtype: Any) -> list[tuple[Any, ...]]:
    """A cache of zeros to trace with: a (key, value) for each layer; ``axis`` names what stands between the heads."""
    size = (SIZES["batch"], SIZES[axis])
    return [
        tuple(torch.zeros((size[0], heads, size[1], width), dtype=dtype) for heads, width in pair) for pair in shapes
    ]


def cache_axes(layers: int, axis: str) -> list[tuple[Any, Any]]:
    """The free axes of :func:`empty_cache`."""
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim(axis)}
    return [(free,) * 2 for _ in range(layers)]


def _encoder(model: TorchModel) -> Signature:
    return Signature(
        name=MODEL,
        view=_EncoderView(model),
        examples=tuple(examples(model, model.inputs).values()),
        dynamic_shapes=tuple(free_axes(model, name) for name in model.inputs),
        input_names=model.inputs,
        output_names=model.outputs,
    )


def _decoder(model: TorchModel) -> Signature:
    shapes = cache_shapes(model)
    past = SIZES["past_sequence"]
    tokens = examples(model, model.inputs)
    tokens["attention_mask"] = torch.ones((SIZES["batch"], past + SIZES["sequence"]), dtype=torch.int64)
    if "position_ids" in tokens:
        tokens["position_ids"] += torch.arange(past, past + SIZES["sequence"])
    axes = {name: free_axes(model, name) for name in model.inputs}
    axes["attention_mask"][1] = torch.export.Dim.DYNAMIC  # past + sequence, which the exporter finds out by itself
    dtype = next(model.module.parameters()).dtype
    parts = [f"{layer}.{part}" for layer in range(len(shapes)) for part in ("key", "value")]
    return Signature(
        name=MODEL,
        view=_DecoderView(model),
        examples=(tuple(tokens.values()), empty_cache(shapes, "past_sequence", dtype)),
        dynamic_shapes=(tuple(axes.values()), cache_axes(len(shapes), "past_sequence")),
        input_names=(*model.inputs, *(f"past_key_values.{part}" for part in parts)),
        output_names=("logits", *(f"present.{part}" for part in parts)),
    )
