"""Merges that grow a vocabulary: tables with more rows, and a configuration that says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from click.testing import CliRunner
from golden_vectors import write_checkpoint
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model
from peft_adapters import peft_warnings_off
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.cli import main
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.reader import read_adapter
from lora_registry.format.writer import write_adapter
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint, prepare
from lora_registry.merge.fitting.fit import Verdict, fit
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.preview import preview
from lora_registry.merge.proof.recompute import recompute
from lora_registry.merge.replay import replay
from lora_registry.merge.undo.patch import write_undo
from lora_registry.merge.undo.unmerge import unmerge
from lora_registry.ops.arrays import Array, from_array, round_to
from lora_registry.ops.fingerprint import fingerprint

Folders = Callable[[str], Path]

ROWS, WIDTH, GROWN = 99, 48, 104
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GROW = MergeOptions(allow_growth=True)

JOBS: dict[str, Callable[[], LoraConfig]] = {
    "saved modules": lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    "saved embeddings": lambda: LoraConfig(target_modules=["q_proj"]),
    "factors on both": lambda: LoraConfig(target_modules=["q_proj", "embed_tokens", "lm_head"]),
    "trained tokens": lambda: LoraConfig(target_modules=["q_proj"], trainable_token_indices=[3, 99, 101]),
}


def trained(base: Path, config: LoraConfig, folder: Path, *, pad: int | None = None) -> Adapter:
    """An adapter that PEFT made after the embeddings were resized, converted."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with peft_warnings_off():
        model.resize_token_embeddings(GROWN, pad_to_multiple_of=pad, mean_resizing=False)
        wrapped = get_peft_model(model, config)
    generator = torch.Generator().manual_seed(0)
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    with peft_warnings_off():
        wrapped.save_pretrained(folder, save_embedding_layers=True)
    return converter.read(folder)[0]


def merged_by_peft(base: Path, folder: Path, rows: int) -> torch.nn.Module:
    """What people do by hand: resize the base, load the adapter, merge."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with peft_warnings_off():
        model.resize_token_embeddings(rows, mean_resizing=False)
        return PeftModel.from_pretrained(model, folder).eval().merge_and_unload()


def same_outputs(folder: Path, expected: torch.nn.Module, rows: int) -> None:
    """transformers loads the folder, and both models answer alike, to the last of the new tokens."""
    tokens = torch.tensor([[1, 5, rows - 1, rows - 2, 98, 3]])
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert loaded.config.vocab_size == rows
        torch.testing.assert_close(loaded(tokens).logits, expected.eval()(tokens).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pad", [None, 64])
@pytest.mark.parametrize("job", JOBS)
def test_equals_peft(job: str, pad: int | None, tiny_dir: Folders, tmp_path: Path) -> None:
    """Tensors and outputs are those of a base that was resized before PEFT merged; padded to a multiple, too."""
    base = tiny_dir("llama-untied")
    adapter = trained(base, JOBS[job](), tmp_path / "peft", pad=pad)
    rows = GROWN if pad is None else 128
    receipt = merge_checkpoint(adapter, base, tmp_path / "out", GROW)
    expected = merged_by_peft(base, tmp_path / "peft", rows)
    wanted = {name: tensor.numpy() for name, tensor in expected.state_dict().items()}
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert actual.keys() == wanted.keys()
    for name, tensor in actual.items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert {record.target for record in receipt.tensors} == {target.name for target in adapter}
    assert any(f"grows from {ROWS} rows to {rows}, and vocab_size in config.json" in note for note in receipt.notes)
    same_outputs(tmp_path / "out", expected, rows)
    assert recompute(tmp_path / "out", base, adapter, every=True).answer.value == "holds"


@pytest.mark.parametrize("job", ["saved embeddings", "trained tokens"])
def test_tied_embeddings_with_one_set_of_values_stay_tied(job: str, tiny_dir: Folders, tmp_path: Path) -> None:
    """PEFT saves the shared table under both names; the output stores it once, as PEFT's merge has it."""
    base = tiny_dir("llama-tied")
    adapter = trained(base, JOBS[job](), tmp_path / "peft")
    receipt = merge_checkpoint(adapter, base, tmp_path / "out", GROW)
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert HEAD not in actual
    assert actual[EMBED].shape == (GROWN, WIDTH)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert any("stay tied: the adapter has the same values for both" in note for note in receipt.notes)
    same_outputs(tmp_path / "out", merged_by_peft(base, tmp_path / "peft", GROWN), GROWN)
    assert recompute(tmp_path / "out", base, adapter, every=True).answer.value == "holds"


def test_tied_embeddings_with_values_of_their_own_are_untied(tiny_dir: Folders, tmp_path: Path) -> None:
    """Each gets what the adapter has for it, in tables of the new length."""
    base = tiny_dir("llama-tied")
    adapter = trained(base, JOBS["saved modules"](), tmp_path / "peft")
    merge_checkpoint(adapter, base, tmp_path / "out", GROW)
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert actual[HEAD].shape == actual[EMBED].shape == (GROWN, WIDTH)
    assert not np.array_equal(actual[HEAD], actual[EMBED])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["vocab_size"]) == (False, GROWN)
    assert recompute(tmp_path / "out", base, adapter, every=True).answer.value == "holds"


def tokens(rows: tuple[int, ...], length: int | None, *, name: str = EMBED, dtype: str = "F32") -> Target:
    """Rows of a table that becomes ``length`` long."""
    value = np.random.default_rng(2).normal(size=(len(rows), WIDTH)).astype(np.float32)
    return Target(
        name=name,
        kind=Kind.TOKENS,
        layout=("in", "out"),
        shape=(ROWS, WIDTH),
        rows=rows,
        length=length,
        tensors={"value": from_array(round_to(value, dtype))},
    )


def table(rows: int, *, name: str = EMBED) -> Target:
    value = np.random.default_rng(3).normal(size=(rows, WIDTH)).astype(np.float32)
    tensors = {"value": from_array(value)}
    return Target(name=name, kind=Kind.FULL, layout=(), shape=value.shape, tensors=tensors)


def rows_of(target: Target) -> Array:
    return np.frombuffer(target.tensors["value"].data, np.float32).reshape(-1, WIDTH)


def test_a_tokens_target_says_its_length_and_needs_no_leave(tiny_dir: Folders, tmp_path: Path) -> None:
    """Replaced and new rows in their places, bit by bit; all between them, and every other tensor, as in the base.

    The table that input and output share grows for both. Undone, verified and done again.
    """
    base, target = tiny_dir("llama-tied"), tokens((7, 99, 100), 101)
    write_adapter(Adapter(targets=(target,)), tmp_path / "a.loreg.safetensors")
    adapter = read_adapter(tmp_path / "a.loreg.safetensors")
    receipt = merge_checkpoint(adapter, base, tmp_path / "out")
    before, actual = (load_file(path / "model.safetensors") for path in (base, tmp_path / "out"))
    wanted = np.concatenate((before[EMBED], rows_of(target)[1:]))
    wanted[7] = rows_of(target)[0]
    assert actual[EMBED].tobytes() == wanted.tobytes()
    assert actual.keys() == before.keys()
    assert all(actual[name].tobytes() == tensor.tobytes() for name, tensor in before.items() if name != EMBED)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["vocab_size"] == 101
    assert any("the tokenizer are the base's" in note for note in receipt.notes)
    assert [record.target for record in receipt.tensors] == [EMBED]
    found = recompute(tmp_path / "out", base, adapter, every=True)
    assert found.answer.value == "holds", found.lines()
    write_undo(base, tmp_path / "out", tmp_path / "undo")
    assert (tmp_path / "undo").stat().st_size < before[EMBED].nbytes / 4
    unmerge(tmp_path / "out", tmp_path / "undo", tmp_path / "back")
    for path in base.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    replay(tmp_path / "out" / "loreg-receipt.json", adapter, base, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "out" / "model.safetensors"
    ).read_bytes()


def test_a_tied_table_that_is_stored_twice_grows_twice(tiny_dir: Folders, tmp_path: Path) -> None:
    """Both names hold the same rows before and after."""
    base = tmp_path / "base"
    base.mkdir()
    tensors = load_file(tiny_dir("llama-tied") / "model.safetensors")
    save_file({**tensors, HEAD: tensors[EMBED]}, base / "model.safetensors", metadata={"format": "pt"})
    (base / "config.json").write_bytes((tiny_dir("llama-tied") / "config.json").read_bytes())
    adapter = Adapter(targets=(tokens((99, 100), 101),))
    merge_checkpoint(adapter, base, tmp_path / "out")
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert actual[EMBED].shape == (101, WIDTH)
    assert np.array_equal(actual[EMBED], actual[HEAD])
    assert recompute(tmp_path / "out", base, adapter, every=True).answer.value == "holds"


def test_the_shared_table_of_an_encoder_decoder_grows(tmp_path: Path) -> None:
    """Rows of tokens are for every use of it; transformers loads the model with the new rows."""
    config = T5Config(
        vocab_size=ROWS, d_model=WIDTH, d_kv=8, d_ff=20, num_layers=1, num_heads=2, tie_word_embeddings=True
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    target = tokens((99, 100), 101, name="shared.weight")
    merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base", tmp_path / "out")
    loaded = T5ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert loaded.config.vocab_size == 101
    for part in (loaded.shared, loaded.encoder.embed_tokens, loaded.decoder.embed_tokens, loaded.lm_head):
        assert np.array_equal(part.weight[ROWS:].detach().numpy(), rows_of(target))


def test_verify_finds_what_is_wrong_with_new_rows(tiny_dir: Folders, tmp_path: Path) -> None:
    """Another value in a row that was added; a configuration with the old number; a table that did not grow."""
    base, adapter = tiny_dir("llama-tied"), Adapter(targets=(tokens((99, 100), 101),))
    merge_checkpoint(adapter, base, tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    tensors[EMBED][100, 3] += 1
    save_file(tensors, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    (changed,) = recompute(tmp_path / "out", base, adapter).changed
    assert changed.answer.value == "does not"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "vocab_size": ROWS}))
    found = recompute(tmp_path / "out", base, adapter)
    assert any(f"says that there are {ROWS} tokens, and the tables have 101" in problem for problem in found.problems)
    (short,) = recompute(base, base, adapter).changed
    assert "its shape is [99, 48]" in short.says


def test_half_precision_and_shards(tmp_path: Path) -> None:
    """New rows are rounded once; the index has the new size; the shard that holds the table grows."""
    model = tiny_models.MODELS["llama-tied"]().to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="30KB")
    target = tokens((99,), 100)
    merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    before = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == before["weight_map"]
    assert index["metadata"]["total_size"] == before["metadata"]["total_size"] + WIDTH * 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.get_input_embeddings().weight.shape[0] == 100
    last = loaded.get_input_embeddings().weight[99].to(torch.float32).detach().numpy()
    assert np.array_equal(last, round_to(rows_of(target)[0], "BF16").astype(np.float32))


def test_rows_of_a_padded_vocabulary_need_no_growth(tmp_path: Path) -> None:
    """A base that is padded has rows for tokens that its tokenizer does not have yet."""
    model = tiny_models.MODELS["llama-tied"]()
    with peft_warnings_off():
        model.resize_token_embeddings(ROWS, pad_to_multiple_of=64, mean_resizing=False)
    model.save_pretrained(tmp_path / "base")
    value = from_array(np.ones((1, WIDTH), np.float32))
    target = Target(
        name=EMBED, kind=Kind.TOKENS, layout=("in", "out"), shape=(128, WIDTH), rows=(ROWS,), tensors={"value": value}
    )
    receipt = merge_checkpoint(Adapter(targets=(target,)), tmp_path / "base", tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")[EMBED].shape == (128, WIDTH)
    assert not any("grows" in note for note in receipt.notes)
    with pytest.raises(
        InvalidInputError, match=r"the base has shape \[128, 48\], the target \[99, 48\], which becomes 101"
    ):
        merge_checkpoint(Adapter(targets=(tokens((99, 100), 101),)), tmp_path / "base", tmp_path / "other")


def test_a_head_with_a_bias_and_the_text_part_of_a_configuration(tmp_path: Path) -> None:
    """All tables grow together, and the size is written where it was said."""
    rng = np.random.default_rng(0)
    shapes = {EMBED: (ROWS, WIDTH), HEAD: (ROWS, WIDTH), "lm_head.bias": (ROWS,), "other.weight": (ROWS, 3)}
    base = tmp_path / "base"
    base.mkdir()
    save_file(
        {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}, base / "model.safetensors"
    )
    config = {"text_config": {"vocab_size": ROWS, "tie_word_embeddings": False}, "vision_config": {"vocab_size": ROWS}}
    (base / "config.json").write_text(json.dumps(config))
    bias = Target(
        name="lm_head.bias",
        kind=Kind.FULL,
        layout=(),
        shape=(GROWN,),
        tensors={"value": from_array(np.arange(GROWN, dtype=np.float32))},
    )
    both = (table(GROWN), table(GROWN, name=HEAD))
    with pytest.raises(UnsupportedError, match=r"and lm_head\.bias would keep its 99"):
        merge_checkpoint(Adapter(targets=both), base, tmp_path / "out", GROW)
    merge_checkpoint(Adapter(targets=(*both, bias)), base, tmp_path / "out", GROW)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["text_config"]["vocab_size"] == GROWN
    assert written["vision_config"]["vocab_size"] == ROWS
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert np.array_equal(actual["lm_head.bias"], np.arange(GROWN))
    assert actual["other.weight"].shape == (ROWS, 3)


@pytest.mark.parametrize(
    ("model", "targets", "options", "message"),
    [
        (
            "llama-untied",
            (tokens((99, 100), 101),),
            GROW,
            r"from 99 rows to 101, and lm_head\.weight would keep its 99",
        ),
        ("llama-tied", (table(GROWN),), GROW, r"lm_head\.weight would keep its 99; choose to change every use"),
        (
            "llama-untied",
            (table(GROWN), table(110, name=HEAD)),
            GROW,
            "grows tables from 99 to 104 and from 99 to 110 rows",
        ),
        (
            "llama-tied",
            (table(GROWN), table(90, name=HEAD)),
            GROW,
            r"the base has shape \[99, 48\], the target \[90, 48\]",
        ),
        ("llama-tied", (table(GROWN),), MergeOptions(), "--allow-growth takes it as a vocabulary that has grown"),
    ],
    ids=["head of its own", "untied", "two lengths", "shorter", "by accident"],
)
def test_what_cannot_grow_is_refused_by_name(
    model: str, targets: tuple[Target, ...], options: MergeOptions, message: str, tiny_dir: Folders, tmp_path: Path
) -> None:
    """One vocabulary has one length, and a longer table alone may be an accident."""
    with pytest.raises((UnsupportedError, InvalidInputError), match=message):
        merge_checkpoint(Adapter(targets=targets), tiny_dir(model), tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_a_document_that_names_added_tokens_is_leave_enough(tiny_dir: Folders, tmp_path: Path) -> None:
    """``tokenizer.added`` says that the adapter was made with more tokens than the base has."""
    added = {"added": [{"id": GROWN - 1, "text": "<json>"}]}
    adapter = Adapter(targets=(table(GROWN),), tokenizer=added)
    merge_checkpoint(adapter, tiny_dir("llama-tied"), tmp_path / "out", MergeOptions(tied="both"))
    assert load_file(tmp_path / "out" / "model.safetensors")[EMBED].shape == (GROWN, WIDTH)


def test_a_configuration_that_says_nothing_of_the_rows_is_refused(tiny_dir: Folders, tmp_path: Path) -> None:
    """P-042: the number is written, or nothing is; a single file has no configuration, and a note says so."""
    base = tmp_path / "base"
    base.mkdir()
    source = tiny_dir("llama-tied")
    (base / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = json.loads((source / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "vocab_size": 90}))
    adapter = Adapter(targets=(tokens((99,), 100),))
    with pytest.raises(UnsupportedError, match=r"no vocab_size of 99 in config\.json"):
        merge_checkpoint(adapter, base, tmp_path / "out")
    receipt = merge_checkpoint(adapter, base / "model.safetensors", tmp_path / "out.safetensors")
    assert any("set vocab_size to 100 where this file is used" in note for note in receipt.notes)


def test_the_dry_run_and_the_command_tell_it(tiny_dir: Folders, tmp_path: Path) -> None:
    """--allow-growth on the command line; before anything is written, the rows are told."""
    adapter = Adapter(targets=(table(GROWN),))
    told = preview(
        prepare(adapter, tiny_dir("llama-tied"), tmp_path / "out", MergeOptions(allow_growth=True, tied="both"))
    )
    assert any("grows from 99 rows to 104" in note for note in told.notes)
    write_adapter(adapter, tmp_path / "a.loreg.safetensors")
    arguments = ["merge", str(tmp_path / "a.loreg.safetensors"), "--base", str(tiny_dir("llama-tied"))]
    arguments += ["-o", str(tmp_path / "out"), "--tied", "both"]
    assert CliRunner().invoke(main, arguments).exit_code == 8
    result = CliRunner().invoke(main, [*arguments, "--allow-growth"])
    assert result.exit_code == 0, result.output
    assert "grows from 99 rows to 104" in " ".join(result.output.split())


@pytest.mark.parametrize("kind", ["pickled", "quantized"])
def test_bases_of_other_forms_grow_too(kind: str, tmp_path: Path) -> None:
    """A pickled base is written as safetensors, a quantized one as its values, and both with the new rows."""
    base, weights = tmp_path / "base", {EMBED: np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float16)}
    if kind == "pickled":
        base.mkdir()
        torch.save({name: torch.from_numpy(each) for name, each in weights.items()}, base / "pytorch_model.bin")
        (base / "config.json").write_text(json.dumps({"vocab_size": ROWS, "tie_word_embeddings": True}))
    else:
        write_checkpoint(base, "nf4", **{EMBED: from_array(weights[EMBED])})
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**config, "vocab_size": ROWS, "tie_word_embeddings": True}))
    target = tokens((99, 100), 101)
    adapter = Adapter(targets=(target,))
    merge_checkpoint(adapter, base, tmp_path / "out")
    actual = load_file(tmp_path / "out" / "model.safetensors")[EMBED]
    assert actual[:ROWS].tobytes() == weights[EMBED].tobytes()
    assert np.array_equal(actual[ROWS:], rows_of(target).astype(np.float16))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["vocab_size"] == 101
    assert "quantization_config" not in written
    found = recompute(tmp_path / "out", base, adapter, every=True)
    assert found.answer.value == "holds", found.lines()


def test_the_fingerprint_of_a_table_that_grows_is_the_one_of_the_base(tiny_dir: Folders) -> None:
    """With a length or without any shape, rows of tokens belong to a base, and its fingerprint is compared."""
    base = open_base(tiny_dir("llama-tied"))
    own = fingerprint(base.array(EMBED))
    bare = replace(tokens((7,), None), shape=None)
    for target in (tokens((99, 100), 101), bare):
        assert fit(Adapter(targets=(replace(target, fingerprint=own),)), base).verdict is Verdict.EXACT
        found = fit(Adapter(targets=(replace(target, fingerprint=Digest.of(b"other")),)), base).findings
        assert "M-004" in {finding.rule for finding in found}
