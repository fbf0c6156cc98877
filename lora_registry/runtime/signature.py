"""The inputs and outputs of an exported model: names as onnxruntime-genai and optimum use them, free axes, examples.

Decoders take the KV cache as plain tensors, ``past_key_values.{layer}.key`` and ``.value`` of shape
(batch, heads, past, head size), and give ``present.{layer}.key`` and ``.value``. Past may be empty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from lora_registry.errors import UnsupportedError
from lora_registry.runtime.torch_model import Task, TorchModel

INNER = "wrapped"
"""Attribute under which a view holds the model; the exporter puts it before every name, and export takes it off."""

_BATCH, _SEQUENCE, _PAST = 2, 4, 3  # of the traced example; different, so that no axis passes for another


@dataclass(frozen=True, slots=True)
class Signature:
    """What the exporter is given.

    Attributes:
        view: a module whose positional inputs and flat outputs are those of the ONNX file.
        examples: positional inputs to trace with.
        dynamic_shapes: free axes of each of them, as ``torch.export`` takes them.
        input_names: names, the KV cache flattened.
        output_names: names, the KV cache flattened.
    """

    view: torch.nn.Module
    examples: tuple[Any, ...]
    dynamic_shapes: tuple[Any, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]


def signature_of(model: TorchModel) -> Signature:
    """The signature of the ONNX file that is made from ``model``.

    Raises:
        UnsupportedError: a decoder that keeps something else than keys and values, such as a state.
    """
    return _decoder(model) if model.task is Task.DECODER else _encoder(model)


class _EncoderView(torch.nn.Module):  # type: ignore[misc]  # torch is Any to mypy
    """Inputs by position, outputs as a tuple."""

    def __init__(self, model: TorchModel) -> None:
        super().__init__()
        self.wrapped = model.module
        self.names, self.outputs = model.inputs, model.outputs
        self.options = {"use_cache": False} if getattr(model.module.config, "use_cache", None) is not None else {}

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> tuple[Any, ...]:
        given = dict(zip(self.names, (input_ids, attention_mask, token_type_ids), strict=False))
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


def cache_shapes(model: TorchModel) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(heads, head size) of the key and of the value of every layer, found by running one token.

    Raises:
        UnsupportedError: the model keeps something else than keys and values.
    """
    token = torch.zeros((1, 1), dtype=torch.int64)
    with torch.no_grad():
        result = model.module(input_ids=token, use_cache=True)
    shapes = []
    for layer in getattr(result.get("past_key_values"), "layers", ()):
        pair = (getattr(layer, "keys", None), getattr(layer, "values", None))
        if not all(isinstance(part, torch.Tensor) and part.dim() == 4 for part in pair):
            raise UnsupportedError(f"{model.architecture} keeps {type(layer).__name__}, not keys and values")
        key, value = ((part.shape[1], part.shape[3]) for part in pair if part is not None)
        shapes.append((key, value))
    if not shapes:
        raise UnsupportedError(f"{model.architecture} gives no KV cache")
    return shapes


def _encoder(model: TorchModel) -> Signature:
    batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence")
    ones = torch.ones((_BATCH, _SEQUENCE), dtype=torch.int64)
    examples = {"input_ids": ones, "attention_mask": ones.clone(), "token_type_ids": torch.zeros_like(ones)}
    return Signature(
        view=_EncoderView(model),
        examples=tuple(examples[name] for name in model.inputs),
        dynamic_shapes=tuple({0: batch, 1: sequence} for _ in model.inputs),
        input_names=model.inputs,
        output_names=model.outputs,
    )


def _decoder(model: TorchModel) -> Signature:
    shapes = cache_shapes(model)
    dim = torch.export.Dim
    batch, sequence, past = dim("batch"), dim("sequence"), dim("past_sequence")
    dtype = next(model.module.parameters()).dtype
    positions = torch.arange(_PAST, _PAST + _SEQUENCE).expand(_BATCH, _SEQUENCE).contiguous()
    examples = {
        "input_ids": torch.ones((_BATCH, _SEQUENCE), dtype=torch.int64),
        "attention_mask": torch.ones((_BATCH, _PAST + _SEQUENCE), dtype=torch.int64),
        "position_ids": positions,
    }
    axes = {
        "input_ids": {0: batch, 1: sequence},
        "attention_mask": {0: batch, 1: dim.DYNAMIC},  # past + sequence, which the exporter finds out by itself
        "position_ids": {0: batch, 1: sequence},
    }
    cache = [tuple(torch.zeros((_BATCH, heads, _PAST, size), dtype=dtype) for heads, size in pair) for pair in shapes]
    parts = [f"{layer}.{part}" for layer in range(len(shapes)) for part in ("key", "value")]
    return Signature(
        view=_DecoderView(model),
        examples=(tuple(examples[name] for name in model.inputs), cache),
        dynamic_shapes=(tuple(axes[name] for name in model.inputs), [({0: batch, 2: past},) * 2 for _ in shapes]),
        input_names=(*model.inputs, *(f"past_key_values.{part}" for part in parts)),
        output_names=("logits", *(f"present.{part}" for part in parts)),
    )
