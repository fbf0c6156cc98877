"""Which scheme a checkpoint is quantized by: what its configuration says, or what its tensors show."""

from __future__ import annotations

from collections.abc import Mapping

from lora_registry.adapter import Json
from lora_registry.dtypes import BY_TORCH
from lora_registry.errors import UnsupportedError
from lora_registry.quantized import awq, compressed, four_bit, fp8, gptq, int8
from lora_registry.quantized.weight import Finder, Quantization, Tensors, table

CONFIG = "quantization_config"

_BITSANDBYTES: tuple[Finder, ...] = (four_bit.find, int8.find)
_METHODS: Mapping[str, tuple[Finder, ...]] = {
    "bitsandbytes": _BITSANDBYTES,
    "gptq": (gptq.find,),
    "awq": (awq.find,),
    "fp8": (fp8.find,),
    "fbgemm_fp8": (fp8.find,),
    "compressed-tensors": (compressed.find,),
    "gguf": (),
}
"""``quant_method`` of the configuration to what finds its weights. Of a model that transformers 5 read from a GGUF file
and dequantized, ``gguf`` may be left there."""

_UNNAMED = (*_BITSANDBYTES, fp8.find)
"""What needs no configuration: the tensors say all."""

_TRANSPOSING = frozenset({"clvp", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"})
"""Models with weights as (in, out), which quantizers store as (out, in) or not: nothing tells which was done."""


def recognize(tensors: Tensors, config: Mapping[str, Json]) -> Quantization | None:
    """The scheme and the quantized weights of a checkpoint.

    Args:
        tensors: what is stored.
        config: ``config.json``; empty where there is none.

    Returns:
        None where nothing is quantized, or by a method that is not known here: then tensors are what they are.

    Raises:
        InvalidInputError: a part of a weight is missing, or parts contradict each other.
        UnsupportedError: a known method in a form that loreg does not read.
    """
    settings = _settings(config)
    method = settings.get("quant_method")
    if method is None and (settings.get("load_in_4bit") or settings.get("load_in_8bit")):
        method = "bitsandbytes"  # as transformers wrote it before 4.33
    finders = _UNNAMED if method is None else _METHODS.get(str(method), ())
    dtype = _dtype(config)
    found = [each for finder in finders if (each := finder(tensors, settings, dtype)) is not None]
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(str(each.scheme) for each in found)
        raise UnsupportedError(f"the checkpoint is quantized in two ways at once: {names}")
    if config.get("model_type") in _TRANSPOSING:
        raise UnsupportedError(
            f"a quantized {config['model_type']}: its weights may be stored transposed, and nothing says if they are; "
            "dequantize it with the program that quantized it, and merge into that"
        )
    return found[0]


def unread_method(config: Mapping[str, Json]) -> str | None:
    """The ``quant_method`` of a configuration where it is none that is read here."""
    method = _settings(config).get("quant_method")
    return None if method is None or str(method) in _METHODS else str(method)


def readable_methods() -> str:
    """What is read, for people."""
    return f"{', '.join(name for name in _METHODS if name != 'gguf')} and GGUF files"


def _settings(config: Mapping[str, Json]) -> Mapping[str, Json]:
    for part in (config, table(config, "text_config")):
        settings = table(part, CONFIG)
        if settings:
            return settings
    return {}


def _dtype(config: Mapping[str, Json]) -> str:
    """Element type of the model, which float32 results are cast to: BF16 where nothing is said."""
    for part in (config, table(config, "text_config")):
        known = BY_TORCH.get(str(part.get("dtype") or part.get("torch_dtype")))
        if known is not None and known.is_wide_float:
            return known.name
    return "BF16"


def without_quantization(config: Mapping[str, Json]) -> dict[str, Json]:
    """A copy of ``config`` that says nothing of a quantization."""
    result = {key: value for key, value in config.items() if key != CONFIG}
    text = result.get("text_config")
    if isinstance(text, dict) and CONFIG in text:
        result["text_config"] = {key: value for key, value in text.items() if key != CONFIG}
    return result
