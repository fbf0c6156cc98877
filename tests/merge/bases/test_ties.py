"""Tied embeddings: a stated policy, never silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from loreg_converters.peft import converter
from peft import LoraConfig
from peft_adapters import make_peft_adapter, merged_model
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    PreTrainedModel,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lora_registry.adapter import Adapter
from lora_registry.errors import ConflictError, InconclusiveError, UnsupportedError
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions

TARGETS = {
    "input": {"target_modules": ["embed_tokens", "q_proj"]},
    "output": {"target_modules": ["lm_head", "q_proj"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
}


def peft_model(side: str, folder: Path) -> tuple[torch.nn.Module, Adapter]:
    wrapped = make_peft_adapter(tiny_models.llama(tied=True), LoraConfig(r=4, lora_alpha=9, **TARGETS[side]), folder)
    return wrapped, converter.read(folder)[0]


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 15)[None]).logits.numpy()


@pytest.mark.parametrize("side", TARGETS)
def test_untie_means_what_the_unmerged_adapter_means(
    side: str, tiny_dir: Callable[[str], Path], tmp_path: Path
) -> None:
    """The merged model, loaded by transformers, computes what PEFT computes without merging (P-007, P-009)."""
    wrapped, adapter = peft_model(side, tmp_path / "peft")
    receipt = merge_checkpoint(adapter, tiny_dir("llama-tied"), tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(logits(loaded), logits(wrapped), rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "out" / "config.json").read_bytes())["tie_word_embeddings"] is False
    assert any("no longer tied" in note for note in receipt.notes)
    assert "lm_head.weight" in set(open_base(tmp_path / "out").names())


@pytest.mark.parametrize("side", TARGETS)
def test_both_means_what_peft_merging_means(side: str, tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """tied="both" gives merge_and_unload()'s model, which differs from the unmerged one."""
    wrapped, adapter = peft_model(side, tmp_path / "peft")
    unmerged = logits(wrapped)
    merge_checkpoint(adapter, tiny_dir("llama-tied"), tmp_path / "out", MergeOptions(tied="both"))
    loaded = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval())
    np.testing.assert_allclose(loaded, logits(merged_model(wrapped)), rtol=1e-4, atol=1e-4)
    assert not np.allclose(loaded, unmerged, rtol=1e-2, atol=1e-2)


def test_a_tie_can_be_an_error(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """tied="error" names both tensors and writes nothing."""
    _, adapter = peft_model("input", tmp_path / "peft")
    with pytest.raises(ConflictError, match=r"lm_head\.weight and model\.embed_tokens\.weight"):
        merge_checkpoint(adapter, tiny_dir("llama-tied"), tmp_path / "out", MergeOptions(tied="error"))
    assert not (tmp_path / "out").exists()


def test_an_untied_shard_is_in_the_index(tiny_dir: Callable[[str], Path], tmp_path: Path) -> None:
    """The tensor that untying adds has its place in weight_map, and total_size counts it."""
    AutoModelForCausalLM.from_pretrained(tiny_dir("llama-tied")).save_pretrained(
        tmp_path / "base", max_shard_size="40KB"
    )
    wrapped, adapter = peft_model("output", tmp_path / "peft")
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_bytes())
    merged = open_base(tmp_path / "out")
    assert index["weight_map"] == merged.places
    assert index["metadata"]["total_size"] == sum(merged.array(name).nbytes for name in merged.names())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(logits(loaded), logits(wrapped), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("flag", "expected"), [(None, True), (True, True), (False, False)])
def test_the_configuration_decides(flag: bool | None, expected: bool, tiny_dir, tmp_path: Path) -> None:
    """Where the head is not stored it is tied unless the configuration denies it."""
    (tmp_path / "model.safetensors").write_bytes((tiny_dir("llama-tied") / "model.safetensors").read_bytes())
    config = {"architectures": ["LlamaForCausalLM"]} | ({} if flag is None else {"tie_word_embeddings": flag})
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ("lm_head.weight" in open_base(tmp_path).ties) is expected


def test_stored_heads_are_tied_only_where_equal(tiny_dir, tmp_path: Path) -> None:
    """Without a word in the configuration, a head with values of its own is its own."""
    (tmp_path / "model.safetensors").write_bytes((tiny_dir("llama-untied") / "model.safetensors").read_bytes())
    assert open_base(tmp_path).ties == {}


def test_a_model_without_a_head_has_no_tie(tiny_dir, tmp_path: Path) -> None:
    """A classifier on the same body does not get a language-modelling head by merging."""
    (tmp_path / "model.safetensors").write_bytes((tiny_dir("llama-tied") / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    assert open_base(tmp_path).ties == {}


_SMALL = {"vocab_size": 43, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_BART = {
    "vocab_size": 43, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 20, "decoder_ffn_dim": 24, "max_position_embeddings": 20,
}  # fmt: skip
_WHISPER = {key: value for key, value in _BART.items() if key != "max_position_embeddings"} | {
    "max_source_positions": 4, "max_target_positions": 20, "num_mel_bins": 3, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_IDS = torch.arange(3, 12)[None]
WITH_MORE_TIES = {
    "bert": lambda: BertForMaskedLM(BertConfig(**_SMALL, intermediate_size=20)),
    "albert": lambda: AlbertForMaskedLM(AlbertConfig(**_SMALL, intermediate_size=20, embedding_size=8)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**_SMALL, intermediate_size=20, embedding_size=8)),
    "distilbert": lambda: DistilBertForMaskedLM(
        DistilBertConfig(vocab_size=43, dim=16, hidden_dim=20, n_layers=1, n_heads=2)
    ),
    "whisper": lambda: WhisperForConditionalGeneration(WhisperConfig(**_WHISPER)),
}


def _randomized(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return model.eval()


def _answer(model: torch.nn.Module) -> np.ndarray:
    with torch.no_grad():
        if model.config.model_type == "whisper":
            return model(input_features=torch.ones(1, 3, 8), decoder_input_ids=_IDS).logits.numpy()
        return model(input_ids=_IDS).logits.numpy()


@pytest.mark.parametrize("name", WITH_MORE_TIES)
def test_untying_keeps_what_the_flag_tied_besides(name: str, tmp_path: Path) -> None:
    """The head has the name that the model gives it, and a bias that the same flag ties is stored: neither is lost."""
    model = _randomized(WITH_MORE_TIES[name]())
    model.save_pretrained(tmp_path / "base")
    embedding = "embed_tokens" if name == "whisper" else "word_embeddings"
    wrapped = make_peft_adapter(model, LoraConfig(r=2, target_modules=[embedding]), tmp_path / "peft")
    merge_checkpoint(converter.read(tmp_path / "peft")[0], tmp_path / "base", tmp_path / "out")
    loaded, report = type(model).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    np.testing.assert_allclose(_answer(loaded.eval()), _answer(wrapped), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("module", ["shared", "lm_head"])
def test_an_embedding_of_encoder_and_decoder_is_not_untied(module: str, tmp_path: Path) -> None:
    """One flag ties encoder, decoder and head: untying one of them would lose the others, so that is refused."""
    model = _randomized(BartForConditionalGeneration(BartConfig(**_BART)))
    model.save_pretrained(tmp_path / "base")
    wrapped = make_peft_adapter(model, LoraConfig(r=2, target_modules=[module]), tmp_path / "peft")
    adapter = converter.read(tmp_path / "peft")[0]
    with pytest.raises(UnsupportedError, match=r"encoder, decoder and head use model\.shared\.weight.*tied: both"):
        merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", MergeOptions(tied="both"))
    loaded = BartForConditionalGeneration.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(_answer(loaded), _answer(merged_model(wrapped)), rtol=1e-3, atol=1e-3)


def test_a_tie_that_is_not_known_is_not_guessed(tmp_path: Path) -> None:
    """A model whose head is nowhere in the checkpoint is not half untied: it is refused, or both uses change."""
    config = DebertaV2Config(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=48,
        legacy=False,
    )
    torch.manual_seed(0)
    model = DebertaV2ForMaskedLM(config).eval()
    model.save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["word_embeddings"])
    wrapped = make_peft_adapter(model, lora, tmp_path / "peft")
    adapter, _ = converter.read(tmp_path / "peft")
    with pytest.raises(InconclusiveError, match=r"word_embeddings\.weight.*tied: both"):
        merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", MergeOptions(tied="both"))
    merged = merged_model(wrapped)
    again = DebertaV2ForMaskedLM.from_pretrained(tmp_path / "out").eval()
    np.testing.assert_allclose(logits(again), logits(merged), rtol=1e-5, atol=1e-5)
