"""Loading is offline and strict: what cannot be run as it stands is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exported_models import Exported
from safetensors.torch import load_file, save_file
from transformers import Wav2Vec2Config, Wav2Vec2Model

from lora_registry.errors import InvalidInputError, NotFoundError, UnsupportedError
from lora_registry.runtime.torch_model import Task, load, task_of

Get = Callable[[str], Exported]
Edit = Callable[..., Path]


@pytest.fixture
def edited(exported: Get, tmp_path: Path) -> Edit:
    """A copy of the tiny BERT's folder with changed fields in its config."""

    def edit(**fields: Any) -> Path:
        folder = tmp_path / "edited"
        shutil.copytree(exported("bert").folder, folder)
        config = json.loads((folder / "config.json").read_text()) | fields
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return edit


@pytest.mark.parametrize(
    ("family", "task", "inputs", "outputs"),
    [
        ("llama-tied", Task.DECODER, ("input_ids", "attention_mask", "position_ids"), ("logits",)),
        ("gpt2", Task.DECODER, ("input_ids", "attention_mask", "position_ids"), ("logits",)),
        (
            "bert",
            Task.ENCODER,
            ("input_ids", "attention_mask", "token_type_ids"),
            ("last_hidden_state", "pooler_output"),
        ),
        ("bert-sequence", Task.CLASSIFIER, ("input_ids", "attention_mask", "token_type_ids"), ("logits",)),
        ("roberta-token", Task.CLASSIFIER, ("input_ids", "attention_mask", "token_type_ids"), ("logits",)),
        ("deberta-sequence", Task.CLASSIFIER, ("input_ids", "attention_mask"), ("logits",)),
        ("bert-mlm", Task.MASKED_LM, ("input_ids", "attention_mask", "token_type_ids"), ("logits",)),
    ],
)
def test_tasks(exported: Get, family: str, task: Task, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> None:
    """Each family has the inputs and outputs that its callers know; weights are float32 and the saved ones."""
    made = exported(family)
    model = load(made.folder)
    assert (model.task, model.inputs, model.outputs) == (task, inputs, outputs)
    state = model.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in made.module.state_dict().items())
    assert not model.module.training


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["BertForNothingAtAll"]}, "BertForNothingAtAll is none of"),
        ({"architectures": ["MadeUpModel"]}, "has no architecture MadeUpModel"),
        ({"architectures": None}, "names no architecture"),
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantized checkpoint"),
    ],
)
def test_what_is_refused_by_name(edited: Edit, fields: dict[str, Any], message: str) -> None:
    """Unknown architectures and quantized checkpoints are unsupported, and the error says which."""
    with pytest.raises(UnsupportedError, match=message):
        load(edited(**fields))


def test_code_in_the_folder_never_runs(edited: Edit) -> None:
    """A folder that brings its own modeling code is loaded by transformers' class, or not at all."""
    folder = edited(auto_map={"AutoModel": "evil.BertModel"})
    (folder / "evil.py").write_text("raise SystemExit('this ran')")
    assert load(folder).architecture == "BertModel"


def test_other_element_types(exported: Get) -> None:
    """Half precisions load as such, by either name; other types are refused."""
    folder = exported("bert").folder
    assert {parameter.dtype for parameter in load(folder, dtype="F16").module.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in load(folder, dtype="bfloat16").module.parameters()} == {torch.bfloat16}
    with pytest.raises(UnsupportedError, match="not in float64"):
        load(folder, dtype="float64")


def test_no_folder_no_config_no_json(tmp_path: Path) -> None:
    """What is not a model folder is told in one line."""
    with pytest.raises(NotFoundError, match=r"no config\.json"):
        load(tmp_path / "none")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match="not JSON"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(InvalidInputError, match="not a JSON object"):
        load(tmp_path)


def test_missing_weights_are_not_drawn_at_random(edited: Edit) -> None:
    """A checkpoint without some of the weights is refused; transformers would fill them with random numbers."""
    with pytest.raises(InvalidInputError, match=r"the checkpoint lacks classifier\.bias \(2 missing in all\)"):
        load(edited(architectures=["BertForSequenceClassification"]))


def test_an_encoder_without_pooler(edited: Edit, tmp_path: Path) -> None:
    """An encoder whose checkpoint has no pooler runs without one."""
    folder = edited()
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert load(folder).outputs == ("last_hidden_state",)


def test_broken_and_pickled_checkpoints(edited: Edit) -> None:
    """A truncated file is invalid; a folder with pickles alone is never opened."""
    folder = edited()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match=r"truncated|R-00"):
        load(folder)
    path.rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedError, match="no pickled checkpoint"):
        load(folder)


def test_shards(edited: Edit) -> None:
    """A missing shard is named, and an index does not reach out of its folder."""
    folder = edited()
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(InvalidInputError, match=r"shard two\.safetensors is missing"):
        load(folder)
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(InvalidInputError, match="not the name of a file in this folder"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(InvalidInputError, match="no weight_map"):
        load(folder)
    names = load_file(folder / "one.safetensors")
    index.write_text(json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, "one.safetensors")}))
    assert load(folder).task is Task.ENCODER


def test_an_adapter_in_the_folder_is_not_loaded_unasked(edited: Edit) -> None:
    """transformers would put an adapter that lies beside the base into the model; here that is an error."""
    folder = edited()
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match=r"holds an adapter_config\.json"):
        load(folder)


def test_models_of_something_else(tmp_path: Path) -> None:
    """A model of sounds without a decoder is refused by the name of its input."""
    config = Wav2Vec2Config(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        conv_dim=(8,),
        conv_stride=(2,),
        conv_kernel=(3,),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2Model(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="Wav2Vec2Model takes input_values"):
        load(tmp_path)


def test_the_name_tells_the_task(tmp_path: Path) -> None:
    """``LMHeadModel`` is a decoder although it ends in ``Model``; half of an encoder-decoder is an encoder."""
    both = {"is_encoder_decoder": True}
    assert task_of("T5ForConditionalGeneration", both, tmp_path) is Task.ENCODER_DECODER
    assert task_of("MarianMTModel", both, tmp_path) is Task.ENCODER_DECODER
    assert task_of("T5EncoderModel", both, tmp_path) is Task.ENCODER
    assert task_of("ViTForImageClassification", {}, tmp_path) is Task.IMAGE_CLASSIFIER
    with pytest.raises(UnsupportedError, match="T5Model has an encoder and a decoder"):
        task_of("T5Model", both, tmp_path)
    assert task_of("GPT2LMHeadModel", {}, tmp_path) is Task.DECODER
    assert task_of("BertModel", {}, tmp_path) is Task.ENCODER
