"""``genai_config.json``: what onnxruntime-genai must know to run an exported decoder, whatever its architecture.

The keys are those that the model builder of onnxruntime-genai 0.18 writes. ``type`` is ``decoder``, its name for any
decoder that takes tokens, mask, positions and a KV cache. The graph concatenates the cache, so that past and present
share no buffer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.runtime.signature import cache_shapes
from lora_registry.runtime.torch_model import TorchModel

FILE = "genai_config.json"

_SEARCH: Mapping[str, Json] = {
    "diversity_penalty": 0.0,
    "do_sample": False,
    "early_stopping": True,
    "length_penalty": 1.0,
    "min_length": 0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
"""Search options and their values where the model's ``generation_config.json`` states none."""


def genai_config(model: TorchModel, file: str, *, cuda: bool = False) -> dict[str, Json]:
    """The document for a decoder.

    Args:
        model: it is made of.
        file: name of the ``.onnx`` beside the document.
        cuda: whether the graph runs on CUDA alone.

    Raises:
        UnsupportedError: layers have caches of different shapes, of which onnxruntime-genai knows one.
        InvalidInputError: ``generation_config.json`` is no JSON object.
    """
    shapes = cache_shapes(model)
    if len({shape for pair in shapes for shape in pair}) > 1:
        raise UnsupportedError(
            f"{model.architecture} has caches of several shapes, which onnxruntime-genai does not run; "
            "give OUTPUT a name that ends in .onnx for the graph alone"
        )
    heads, head_size = shapes[0][0]
    config = model.module.config.get_text_config()
    stated = _generation_config(model.folder)
    ends = stated.get("eos_token_id", config.eos_token_id)
    first_end = ends[0] if isinstance(ends, list) and ends else ends
    pad = stated.get("pad_token_id", config.pad_token_id)
    length = getattr(config, "max_position_embeddings", None) or 2048
    tokens: dict[str, Json] = {
        "bos_token_id": stated.get("bos_token_id", config.bos_token_id),
        "eos_token_id": ends,
        "pad_token_id": first_end if pad is None else pad,
    }
    inputs: dict[str, Json] = {name: name for name in model.inputs}
    return {
        "model": {
            **{name: value for name, value in tokens.items() if value is not None},
            "context_length": length,
            "decoder": {
                "session_options": {
                    "log_id": "onnxruntime-genai",
                    "provider_options": [{"cuda": {}}] if cuda else [],
                },
                "filename": file,
                "head_size": head_size,
                "hidden_size": config.hidden_size,
                "inputs": {
                    **inputs,
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": len(shapes),
                "num_key_value_heads": heads,
            },
            "type": "decoder",
            "vocab_size": config.vocab_size,
        },
        "search": {
            **{name: stated.get(name, default) for name, default in _SEARCH.items()},
            "max_length": length,
            "past_present_share_buffer": False,
        },
    }


def _generation_config(folder: Path) -> dict[str, Any]:
    """What ``generation_config.json`` states; nothing where there is none."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidInputError(f"{path}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"{path}: not a JSON object")
    return {key: value for key, value in document.items() if value is not None}
