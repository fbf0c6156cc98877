"""The resolver's rule for graphs that onnxruntime-genai's model builder wrote (version 0.18).

It calls the matrix of a module ``<module>.MatMul.weight``, its bias ``<module>.Add.bias``, and attention ``attn``
where transformers says ``self_attn``. Queries, keys and values are packed into ``attn.qkv_proj``, one behind the
other; the numbers of their heads stand at the operator that reads the product. The last norm belongs to one layer
more than there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate

import onnx_ir as ir

from lora_registry.onnx.hit import Hit
from lora_registry.onnx.model import FLOATING, OnnxModel, dtype_of, shape_of
from lora_registry.onnx.sites import Site, integer
from lora_registry.onnx.window import Window

RULE = "builder"
"""Id of the rule."""

PRODUCER = "onnxruntime-genai"
"""What the builder calls itself in the model."""

_PARAMETER = re.compile(r"(.+)\.(?:MatMul\.(weight)|Add\.(bias))")
_QUANTIZED = re.compile(r"(.+)\.MatMul(?:\.weight|NBits\.qweight)")
_FINAL_NORM = re.compile(r"(.+)\.layers\.\d+\.final_norm_layernorm\.(weight|bias)")
_PACKED = "attn.qkv_proj"
_ATTENTION = frozenset({"GroupQueryAttention", "Attention", "MultiHeadAttention", "SparseAttention", "PagedAttention"})
_ON_THE_WAY = frozenset({"Add", "Cast", "Identity"})


def builder_hits(model: OnnxModel, _sites: Mapping[str, tuple[Site, ...]]) -> Iterator[tuple[str, Hit]]:
    """Initializers under the builder's names, as transformers' names; packed ones part by part."""
    if model.ir.producer_name != PRODUCER:
        return
    for name, value in model.initializers.items():
        if dtype_of(value) not in FLOATING:
            continue
        final, parameter = _FINAL_NORM.fullmatch(name), _PARAMETER.fullmatch(name)
        if final is not None:
            yield f"{final[1]}.norm.{final[2]}", Hit(RULE, value)
        if parameter is None:
            continue
        transposed = parameter[2] is not None
        tensor = f"{_checkpoint_module(parameter[1])}.{parameter[2] or parameter[3]}"
        yield tensor, Hit(RULE, value, transposed)
        if parameter[1].endswith(_PACKED):
            for letter, window in zip("qkv", _packed(value), strict=False):
                yield tensor.replace(".qkv_proj.", f".{letter}_proj."), Hit(RULE, value, transposed, window=window)


def quantized_parts(names: Iterable[str], operator: ir.Node, height: int) -> Iterator[tuple[str, Window | None]]:
    """A quantized matrix under the builder's names, as transformers' names; a packed one part by part.

    Args:
        names: what it may be called, without what a quantizer put behind it.
        operator: reads it.
        height: number of its outputs.

    Yields:
        A name, and the outputs that it means; None where it means all.
    """
    for name in names:
        parameter = _QUANTIZED.fullmatch(name)
        if parameter is None:
            continue
        tensor = f"{_checkpoint_module(parameter[1])}.weight"
        yield tensor, None
        if parameter[1].endswith(_PACKED):
            for letter, window in zip("qkv", _windows(_heads(operator.outputs[0]), height, 1), strict=False):
                yield tensor.replace(".qkv_proj.", f".{letter}_proj."), window


def _checkpoint_module(module: str) -> str:
    return re.sub(r"\.attn\.", ".self_attn.", f"{module}.")[:-1]


def _packed(value: ir.Value) -> list[Window]:
    """The parts of queries, keys and values; none where no operator says how many heads they have."""
    shape = shape_of(value)
    return _windows(_heads(value), shape[-1], len(shape) - 1) if shape else []


def _windows(heads: tuple[int, int, int] | None, height: int, axis: int) -> list[Window]:
    if heads is None or height % sum(heads):
        return []
    widths = [count * (height // sum(heads)) for count in heads]
    starts = accumulate(widths, initial=0)
    return [Window(axis, start, width) for start, width in zip(starts, widths, strict=False)]


def _heads(value: ir.Value) -> tuple[int, int, int] | None:
    """Heads of queries, keys and values, as the attention says that computes with what ``value`` is part of."""
    uses = list(value.uses())
    while len(uses) == 1:
        node, index = uses[0].node, uses[0].idx
        if node.op_type in _ATTENTION:
            packed = index == 0 and not any(held is not None for held in node.inputs[1:3])
            queries = integer(node, "num_heads", 0)
            keys = integer(node, "kv_num_heads", queries)
            return (queries, keys, keys) if packed and queries and keys else None
        if node.op_type not in _ON_THE_WAY | {"MatMul"}:
            return None
        uses = list(node.outputs[0].uses())
    return None
