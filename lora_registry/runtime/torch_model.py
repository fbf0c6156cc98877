"""A base model as PyTorch runs it: from a Hugging Face folder, offline, executing nothing from the folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from lora_registry import dtypes
from lora_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from lora_registry.runtime.packages import require
from lora_registry.runtime.quiet import quiet


class Task(StrEnum):
    """What a model computes, and with that its inputs and outputs."""

    DECODER = "decoder"
    ENCODER = "encoder"
    CLASSIFIER = "classifier"
    MASKED_LM = "masked-lm"
    ENCODER_DECODER = "encoder-decoder"
    IMAGE_CLASSIFIER = "image-classifier"


_TASKS = {
    "ForCausalLM": Task.DECODER,
    "LMHeadModel": Task.DECODER,
    "ForSequenceClassification": Task.CLASSIFIER,
    "ForTokenClassification": Task.CLASSIFIER,
    "ForMaskedLM": Task.MASKED_LM,
    "ForImageClassification": Task.IMAGE_CLASSIFIER,
    "ModelWithProjection": Task.ENCODER,
    "Model": Task.ENCODER,  # last: "LMHeadModel" ends so too
}
_ENCODER_DECODERS = ("ForConditionalGeneration", "MTModel")  # MarianMTModel

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "F32": "F32", "F16": "F16", "BF16": "BF16"}
"""Element types in which loreg loads and exports, under torch's and safetensors' names.

ONNX Runtime's CPU provider has next to no bfloat16 kernels, so that a BF16 file runs on CUDA alone.
"""

_MAIN_INPUTS = ("input_ids", "pixel_values", "input_features")
"""What a model may take first: tokens, images, or the spectrum of a sound, of encoder-decoders alone."""


@dataclass(frozen=True, slots=True)
class TorchModel:
    """A model in evaluation mode whose parameters need no gradient.

    Attributes:
        module: the ``PreTrainedModel``.
        task: what it computes.
        architecture: class name, as ``config.json`` has it.
        folder: where it was loaded from.
        outputs: names of the outputs, without the KV cache.
    """

    module: Any
    task: Task
    architecture: str
    folder: Path
    outputs: tuple[str, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs, without the KV cache and, of an encoder-decoder, without those of the decoder."""
        main = self.module.main_input_name
        accepted = inspect.signature(self.module.forward).parameters
        if main != "input_ids":
            return (main,)
        names = ["input_ids", "attention_mask"]
        if self.task is Task.DECODER:
            names += ["position_ids"] if "position_ids" in accepted else []
        # RoBERTa takes token types and has one; its tokenizers, and so its callers, give none.
        elif "token_type_ids" in accepted and getattr(self.module.config, "type_vocab_size", 0) > 1:
            names.append("token_type_ids")
        if "pixel_values" in accepted:  # CLIP: texts and images
            names.append("pixel_values")
        return tuple(names)


def load(folder: Path, *, dtype: str = "float32") -> TorchModel:
    """Load a folder of ``config.json`` and safetensors; never the network, never code from the folder.

    Attention is computed eagerly: the one implementation that every architecture has and every exporter traces.

    Args:
        folder: a Hugging Face model folder.
        dtype: one of :data:`DTYPES`.

    Raises:
        NotFoundError: no folder, or no ``config.json`` in it.
        InvalidInputError: the checkpoint lacks weights that the architecture has, or a file is broken.
        UnsupportedError: the architecture, element type, quantization or file kind is not one that loreg runs.
        MissingPackageError: torch or transformers is not installed.
    """
    from lora_registry.merge.bases.base import open_base

    if dtype not in DTYPES:
        raise UnsupportedError(f"models run in float32, float16 or bfloat16, not in {dtype}")
    config = read_config(folder)
    architecture = _architecture(folder, config)
    task = task_of(architecture, config, folder)
    open_base(folder)  # checks every header before another reader sees it
    torch = require("torch", "export")
    transformers = require("transformers", "export")
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        raise UnsupportedError(f"{folder}: transformers {transformers.__version__} has no architecture {architecture}")
    options: dict[str, Any] = {"dtype": getattr(torch, dtypes.DTYPES[DTYPES[dtype]].torch)}
    if any("experts" in key for key in config):
        # of transformers' ways through a mixture of experts, the one without a loop that depends on the data
        options["experts_implementation"] = "batched_mm"
    module = _from_pretrained(model_class, folder, options)
    main = module.main_input_name
    if main not in _MAIN_INPUTS or (main == "input_features" and task is not Task.ENCODER_DECODER):
        raise UnsupportedError(f"{folder}: {architecture} takes {main}; loreg runs models of token ids and of images")
    model = TorchModel(module.eval().requires_grad_(requires_grad=False), task, architecture, folder, ("logits",))
    return replace(model, outputs=_outputs(model)) if task is Task.ENCODER else model


def _outputs(model: TorchModel) -> tuple[str, ...]:
    """The tensors that a bare model gives, found by running it on one small input."""
    torch = require("torch", "export")
    from lora_registry.runtime.model_inputs import examples

    try:
        with torch.no_grad(), quiet():
            result = model.module(**examples(model, model.inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise UnsupportedError(f"{model.folder}: {model.architecture} does not run: {first_line(error)}") from error
    return tuple(name for name, value in result.items() if isinstance(value, torch.Tensor))


def read_config(folder: Path) -> Mapping[str, Any]:
    """The ``config.json`` of a model folder.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: it is not a JSON object.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise NotFoundError(f"{folder}: no model folder, it has no config.json") from None
    except ValueError as error:
        raise InvalidInputError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict):
        raise InvalidInputError(f"{path}: not a JSON object")
    return config


def task_of(architecture: str, config: Mapping[str, Any], folder: Path) -> Task:
    """What the architecture computes, by its name.

    Raises:
        UnsupportedError: the name tells no task that loreg runs.
    """
    if config.get("is_encoder_decoder") and not architecture.endswith("EncoderModel"):  # T5EncoderModel is half of one
        if architecture.endswith(_ENCODER_DECODERS):
            return Task.ENCODER_DECODER
        raise UnsupportedError(
            f"{folder}: {architecture} has an encoder and a decoder; loreg runs those that generate, "
            f"{', '.join('*' + suffix for suffix in _ENCODER_DECODERS)}"
        )
    for suffix, task in _TASKS.items():
        if architecture.endswith(suffix):
            return task
    raise UnsupportedError(f"{folder}: {architecture} is none of {', '.join('*' + suffix for suffix in _TASKS)}")


def _architecture(folder: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise UnsupportedError(f"{folder}: config.json names no architecture")
    if "quantization_config" in config:
        raise UnsupportedError(f"{folder}: a quantized checkpoint; loreg runs float checkpoints")
    if (folder / "adapter_config.json").exists():
        # transformers would load that adapter into the model without a word
        raise UnsupportedError(f"{folder}: holds an adapter_config.json; a base model folder holds the base alone")
    if not any(folder.glob("*.safetensors")):
        raise UnsupportedError(f"{folder}: no safetensors file; loreg loads no pickled checkpoint")
    return names[0]


def _from_pretrained(model_class: Any, folder: Path, options: dict[str, Any]) -> Any:
    """Load, and refuse weights that transformers would have drawn at random."""
    options = options | {
        "local_files_only": True,
        "use_safetensors": True,
        "trust_remote_code": False,
        "attn_implementation": "eager",
        "output_loading_info": True,
    }
    try:
        with quiet():
            module, info = model_class.from_pretrained(folder, **options)
            if info["missing_keys"] and all(key.startswith("pooler.") for key in info["missing_keys"]):
                module, info = model_class.from_pretrained(folder, add_pooling_layer=False, **options)
    except (OSError, ValueError, RuntimeError, ImportError, TypeError) as error:
        raise InvalidInputError(f"{folder}: transformers cannot load it: {first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise InvalidInputError(f"{folder}: the checkpoint lacks {missing[0]} ({len(missing)} missing in all)")
    return module


def first_line(error: BaseException) -> str:
    """The first line of an error that says something; the name of its class where none does."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
