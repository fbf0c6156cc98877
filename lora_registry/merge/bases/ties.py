"""Tied tensors: one set of values under two names, of which a checkpoint usually stores one.

An adapter may change one of the two and not the other. What then happens to the tie is for the caller to
decide (:data:`lora_registry.ops.tied.TiedPolicy`) and never an accident: PEFT issue 2018 and transformers
issue 45127 are two of the accidents.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from math import inf

from lora_registry.adapter import Json
from lora_registry.ops.base_model import BaseModel

FLAG = "tie_word_embeddings"

_DECODER_PAIRS = (
    (re.compile(r"(?:model\.)?(?:language_model\.|text_model\.|decoder\.)?embed_tokens\.weight"), "lm_head.weight"),
    (re.compile(r"(?:model\.|led\.)?shared\.weight"), "lm_head.weight"),
    (re.compile(r"backbone\.embeddings\.weight"), "lm_head.weight"),
    (re.compile(r"rwkv\.embeddings\.weight"), "head.weight"),
    (re.compile(r"transformer\.embeddings\.weight"), "pred_layer.proj.weight"),
    (re.compile(r"transformer\.word_embedding\.weight"), "lm_loss.weight"),
    (re.compile(r"biogpt\.embed_tokens\.weight"), "output_projection.weight"),
    (re.compile(r"(?:transformer\.)?(?:wte|word_embeddings|embd)\.weight"), "lm_head.weight"),
    (re.compile(r"(?:gpt_neox\.)?embed_in\.weight"), "embed_out.weight"),
    (re.compile(r"language_model\.model\.embed_tokens\.weight"), "language_model.lm_head.weight"),
)
_ENCODER_INPUT = re.compile(r"(?:\w+\.)?embeddings\.(?:word|tok)_embeddings\.weight")
_ENCODER_HEADS = (
    ("cls.predictions.", "cls.predictions.decoder.weight"),
    ("predictions.dense.", "predictions.decoder.weight"),
    ("lm_head.dense.", "lm_head.decoder.weight"),
    ("generator_predictions.", "generator_lm_head.weight"),
    ("vocab_transform.", "vocab_projector.weight"),
    ("head.dense.", "decoder.weight"),
)
"""Names of the input embedding and of the output embedding that may share its values (transformers 5.23)."""

_SPEECH = frozenset({"whisper", "moonshine", "moonshine_streaming", "canary", "cohere_asr"})
_SPEECH_OUTPUT = "proj_out.weight"
"""Model types whose output embedding is not called ``lm_head``, and what it is called."""

_SECOND_TIES = (
    ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ("predictions.decoder.bias", "predictions.bias"),
    ("lm_head.decoder.bias", "lm_head.bias"),
)
"""Biases that transformers ties, and stops tying, together with the embeddings."""

_SHARED = re.compile(r"(?:\w+\.)?shared\.weight")
"""The embedding of an encoder-decoder: encoder, decoder and head all use it under names of their own."""

_WITH_HEAD = re.compile(r"CausalLM|LMHead|ConditionalGeneration|MaskedLM|PreTraining|Seq2SeqLM")


def find_ties(base: BaseModel, config: Mapping[str, Json]) -> dict[str, str]:
    """The output embedding that shares the input embedding's values: its name to that of the input embedding.

    A flag in the configuration decides where there is one. Where there is none, its default depends on the
    architecture, so the tensors decide: the output embedding of a model with a language-modeling head that
    is not stored must come from the input embedding, and one that is stored is tied if its values are equal.
    """
    flag = tie_flag(config)
    pair = None if flag is False else embedding_pair(frozenset(base.names()), config)
    if pair is None:
        return {}
    source, output = pair
    if output in base.names() and (
        base.shape(output) != base.shape(source) or (flag is None and not _equal(base, output, source))
    ):
        return {}
    return {output: source}


def embedding_pair(names: frozenset[str], config: Mapping[str, Json]) -> tuple[str, str] | None:
    """The input embedding that is stored, and the name of the output embedding that the model has, stored or not.

    None where neither name is known, or the model has no head.
    """
    architectures = config.get("architectures")
    headless = isinstance(architectures, list) and not any(_WITH_HEAD.search(str(name)) for name in architectures)
    for name in sorted(names):
        for pattern, output in _DECODER_PAIRS:
            if pattern.fullmatch(name) and (not headless or output in names):
                return name, _SPEECH_OUTPUT if config.get("model_type") in _SPEECH else output
        if _ENCODER_INPUT.fullmatch(name):
            for prefix, output in _ENCODER_HEADS:
                if any(other.startswith(prefix) for other in names) and (not headless or output in names):
                    return name, output
    return None


def may_be_tied(base: BaseModel, config: Mapping[str, Json], name: str) -> bool:
    """Whether the model may use the tensor ``name`` as its head too, by a name that is not known here.

    True for a table as long as the vocabulary, in a model that has a head, says nothing against a tie, and
    stores no other tensor of the same shape that could be the head.
    """
    architectures = config.get("architectures")
    headed = isinstance(architectures, list) and any(_WITH_HEAD.search(str(each)) for each in architectures)
    shape = base.shape(name)
    if not headed or tie_flag(config) is False or len(shape) != 2 or shape[0] < _vocabulary(config):
        return False
    return not any(other != name and base.shape(other) == shape for other in base.names())


def _vocabulary(config: Mapping[str, Json]) -> float:
    """Length of the vocabulary; infinite where the configuration does not tell."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int):
            return int(str(part["vocab_size"]))
    return inf


def second_ties(names: Collection[str]) -> dict[str, str]:
    """What else transformers makes from another tensor only as long as the embeddings are tied.

    One flag governs all: a model whose embeddings are untied finds none of these unless they are stored.

    Returns:
        Name of each such tensor that is not among ``names`` to the name of the one that it copies.
    """
    return {name: source for name, source in _SECOND_TIES if source in names and name not in names}


def is_shared(source: str) -> bool:
    """Whether encoder and decoder use the input embedding ``source`` under names of their own."""
    return _SHARED.fullmatch(source) is not None


def tie_flag(config: Mapping[str, Json]) -> bool | None:
    """``tie_word_embeddings`` of a configuration, or of the text part of a multi-modal one; None where absent."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get(FLAG), bool):
            return bool(part[FLAG])
    return None


def untied(config: Mapping[str, Json]) -> dict[str, Json]:
    """A copy of ``config`` that says that the embeddings are not tied, wherever it says anything about it."""
    result = dict(config)
    text = result.get("text_config")
    if isinstance(text, dict) and FLAG in text:
        result["text_config"] = {**text, FLAG: False}
        if FLAG not in result:
            return result
    result[FLAG] = False
    return result


def _equal(base: BaseModel, first: str, second: str) -> bool:
    a, b = base.array(first), base.array(second)
    if a.dtype != b.dtype:
        return False
    rows = max(1, (1 << 20) * a.shape[0] // max(1, a.size))
    return all(a[i : i + rows].tobytes() == b[i : i + rows].tobytes() for i in range(0, a.shape[0], rows))
