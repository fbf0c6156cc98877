"""Experts that the model stacks and the checkpoint stores one by one: merged as PEFT merges them, under their names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from golden_vectors import vector
from loreg_converters.peft import converter
from peft import LoraConfig
from peft_adapters import make_peft_adapter, merged_model, peft_warnings_off
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter, WeightRenaming

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.errors import InvalidInputError
from lora_registry.findings import Severity
from lora_registry.format.container import encode_tensors, open_container
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.fitting.expert_names import CONVENTIONS, model_names
from lora_registry.merge.fitting.fit import Verdict, fit
from lora_registry.merge.fitting.pin import pin
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.proof.recompute import recompute
from lora_registry.merge.replay import replay
from lora_registry.merge.undo.patch import write_undo
from lora_registry.merge.undo.unmerge import unmerge
from lora_registry.ops.arrays import Array, from_array, to_array
from lora_registry.ops.fingerprint import fingerprint

TOLERANCE = 1e-5

_SMALL = {"vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
_CHOSEN = {"num_experts_per_tok": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LATENT = {"num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8}
_LATENT |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
_DEEPSEEK = {**_SMALL, **_LATENT, **_CHOSEN, "n_routed_experts": 4, "moe_intermediate_size": 12}
_DEEPSEEK |= {"first_k_dense_replace": 1}
_QWEN = {**_SMALL, **_HEADS, **_CHOSEN, "num_experts": 3, "moe_intermediate_size": 12}

CONFIGS = {
    "mixtral": {**_SMALL, **_HEADS, **_CHOSEN, "num_local_experts": 3},
    "phimoe": {**_SMALL, **_HEADS, **_CHOSEN, "num_local_experts": 3},
    "qwen2_moe": {**_QWEN, "shared_expert_intermediate_size": 12},
    "qwen3_moe": {**_QWEN, "head_dim": 8},
    "olmoe": {**_SMALL, **_HEADS, **_CHOSEN, "num_experts": 3},
    "deepseek_v2": {**_DEEPSEEK},
    "deepseek_v3": {**_DEEPSEEK, "n_group": 2, "topk_group": 1},
    "gpt_oss": {**_SMALL, **_HEADS, **_CHOSEN, "num_local_experts": 3, "head_dim": 8},
}
ROUTER = {"phimoe": "mlp.router.weight", "gpt_oss": "mlp.router.weight"}


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """A tiny random model."""
    torch.manual_seed(0)
    config: PretrainedConfig = transformers.AutoConfig.for_model(kind, **CONFIGS[kind])
    return AutoModelForCausalLM.from_config(config).to(dtype).eval()


def lora_on(*parameters: str, modules: tuple[str, ...] = ()) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=3, target_modules=list(modules), target_parameters=list(parameters))


def base_and_adapter(kind: str, folder: Path, config: LoraConfig) -> tuple[Adapter, torch.nn.Module]:
    """A checkpoint in ``folder / "base"``; PEFT's adapter, converted; and the model that PEFT merged."""
    with peft_warnings_off():
        model_of(kind).save_pretrained(folder / "base")
    wrapped = make_peft_adapter(AutoModelForCausalLM.from_pretrained(folder / "base"), config, folder / "peft")
    adapter, _ = converter.read(folder / "peft")
    return adapter, merged_model(wrapped)


def relative(actual: Array, expected: Array) -> float:
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("kind", CONFIGS)
def test_equals_peft(kind: str, tmp_path: Path) -> None:
    """Every tensor equals what PEFT merges and transformers saves, under the same names in the same file order."""
    config = lora_on("mlp.experts.gate_up_proj", "mlp.experts.down_proj", modules=("q_proj", "o_proj"))
    adapter, expected = base_and_adapter(kind, tmp_path, config)
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    with peft_warnings_off():
        expected.save_pretrained(tmp_path / "peft-out")
    wanted, before, actual = (load_file(tmp_path / name / "model.safetensors") for name in ("peft-out", "base", "out"))
    assert list(actual) == list(before)
    assert actual.keys() == wanted.keys()
    changed = {record.name for record in receipt.tensors}
    assert any("experts" in name for name in changed)
    for name, tensor in actual.items():
        if name in changed:
            assert relative(tensor, wanted[name]) <= TOLERANCE, name
            assert relative(before[name], wanted[name]) > 100 * TOLERANCE, name
        else:
            assert tensor.tobytes() == before[name].tobytes(), name
            assert np.array_equal(tensor, wanted[name]), name
    assert {record.target for record in receipt.tensors} == {target.name for target in adapter}
    tokens = torch.arange(12).reshape(1, 12)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        torch.testing.assert_close(merged(tokens).logits, expected(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(CONVENTIONS))
def test_the_table_is_that_of_transformers(kind: str) -> None:
    """Every line: the same names, renamed in the same order, stacked along a first axis and then along the outputs."""
    convention = CONVENTIONS[kind]
    stacks: dict[str, tuple[str, ...]] = {}
    renamed: list[tuple[str, str]] = []
    for step in get_checkpoint_conversion_mapping(kind):
        before, after = _plain(step._original_source_patterns), _plain(step._original_target_patterns)
        if isinstance(step, WeightConverter):
            stack, concatenate = step.operations[0], step.operations[1:]
            assert isinstance(stack, MergeModulelist)
            assert stack.dim == 0
            assert [type(each) for each in concatenate] == [Concatenate] * (len(before) - 1)
            assert all(each.dim == 1 for each in concatenate)
            stacks[after[0]] = tuple(before)
        else:
            assert isinstance(step, WeightRenaming)
            renamed.append((before[0], after[0]))
    assert tuple(renamed) == convention.renamed
    assert len(stacks) == len(convention.stacks)
    for name, sources in stacks.items():
        found = next(own for own in convention.stacks if own.endswith(name))
        module = found.removesuffix(name)
        assert convention.stacks[found] == tuple(module + source for source in sources)


def _plain(patterns: list[str] | str) -> list[str]:
    """Regular expressions without anything special are names; a full stop stands for itself in names."""
    return [re.sub(r"\\(.)", r"\1", each) for each in ([patterns] if isinstance(patterns, str) else patterns)]


def test_the_router_of_mixtral_is_found_under_its_name_in_the_model(tmp_path: Path) -> None:
    """The checkpoint calls it block_sparse_moe.gate, the model mlp.gate."""
    adapter, expected = base_and_adapter("mixtral", tmp_path, lora_on("mlp.gate.weight"))
    receipt = merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out")
    wanted = {name: tensor.numpy() for name, tensor in expected.state_dict().items()}
    actual = load_file(tmp_path / "out" / "model.safetensors")
    assert {record.name for record in receipt.tensors} == {
        f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(2)
    }
    for record in receipt.tensors:
        assert relative(actual[record.name], wanted[record.target]) <= TOLERANCE


def test_a_merge_into_experts_is_verified_undone_and_done_again(tmp_path: Path) -> None:
    """The checkpoint's own tensors are what verify judges, and what a reverse patch restores."""
    config = lora_on("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    adapter, _ = base_and_adapter("qwen3_moe", tmp_path, config)
    base, out = tmp_path / "base", tmp_path / "out"
    receipt = merge_checkpoint(adapter, base, out)
    assert any("stores 4 stacks of experts as 18 tensors, such as" in note for note in receipt.notes)
    found = recompute(out, base, adapter, every=True)
    assert found.answer.value == "holds", found.lines()
    assert len(found.changed) == 2 * 3 * 3
    assert recompute(base, base, adapter).answer.value == "does not"
    write_undo(base, out, tmp_path / "undo")
    unmerge(out, tmp_path / "undo", tmp_path / "back")
    for path in base.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()
    replay(out / "loreg-receipt.json", adapter, base, tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_a_stack_is_pinned_by_the_fingerprint_of_the_whole(tmp_path: Path) -> None:
    """The parts that are stored have the fingerprint of the tensor that the model has; other experts have another."""
    config = lora_on("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    adapter, _ = base_and_adapter("mixtral", tmp_path, config)
    pinned = pin(adapter, tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base").state_dict()
    for target in pinned:
        assert target.fingerprint == fingerprint(model[target.name].numpy())
    base = open_base(tmp_path / "base")
    assert fit(pinned, base, config=base.config).verdict is Verdict.EXACT
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    tensors["model.layers.1.block_sparse_moe.experts.2.w2.weight"] *= 2
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    base = open_base(tmp_path / "base")
    found = [finding for finding in fit(pinned, base, config=base.config).findings if finding.rule == "M-004"]
    assert [finding.place for finding in found] == ["model.layers.1.mlp.experts.down_proj"]


def stacks(folder: Path, *, config: dict[str, object] | None = None, **tensors: Array) -> Path:
    """A checkpoint of two experts, of 3 + 3 outputs and 4 inputs."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    parts = {
        f"mlp.experts.{expert}.{name}.weight": rng.normal(size=(3, 4)).astype(np.float32)
        for expert in range(2)
        for name in ("gate_proj", "up_proj")
    }
    save_file({**parts, **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"} if config is None else config))
    return folder


def experts(**changes: object) -> Target:
    rng = np.random.default_rng(6)
    factors = {
        "A": from_array(rng.normal(size=(2, 2, 4)).astype(np.float32)),
        "B": from_array(rng.normal(size=(2, 6, 2)).astype(np.float32)),
    }
    fields: dict[str, object] = {
        "name": "mlp.experts.gate_up_proj",
        "kind": Kind.EXPERTS,
        "layout": ("expert", "out", "in"),
        "shape": (2, 6, 4),
        "scale": 0.5,
        "tensors": factors,
    }
    return Target(**{**fields, **changes})  # type: ignore[arg-type]


def stacked(folder: Path) -> Array:
    """The tensors of :func:`stacks` as the model has them."""
    tensors = load_file(folder / "model.safetensors")
    return np.stack(
        [
            np.concatenate([tensors[f"mlp.experts.{expert}.{name}.weight"] for name in ("gate_proj", "up_proj")])
            for expert in range(2)
        ]
    )


def test_whole_and_sparse_changes_of_a_stack(tmp_path: Path) -> None:
    """A value is cut up, and positions go where their tensor begins; one without any keeps its bytes."""
    base = stacks(tmp_path / "base")
    value = np.arange(48, dtype=np.float32).reshape(2, 6, 4)
    full = experts(kind=Kind.FULL, layout=(), scale=1.0, tensors={"value": from_array(value)})
    merge_checkpoint(Adapter(targets=(full,)), base, tmp_path / "full")
    assert np.array_equal(stacked(tmp_path / "full"), value)
    index, delta = np.array([0, 11, 13, 47]), np.array([1, 2, 3, 4], np.float32)
    tensors = {"index": from_array(index), "delta": from_array(delta)}
    sparse = experts(kind=Kind.SPARSE, layout=(), tensors=tensors)
    receipt = merge_checkpoint(Adapter(targets=(sparse,)), base, tmp_path / "sparse")
    wanted = stacked(base).reshape(-1)
    wanted[index] += 0.5 * delta
    assert np.array_equal(stacked(tmp_path / "sparse").reshape(-1), wanted)
    assert [record.name for record in receipt.tensors] == [
        "mlp.experts.0.gate_proj.weight",
        "mlp.experts.0.up_proj.weight",
        "mlp.experts.1.up_proj.weight",
    ]


def test_a_value_that_stands_for_the_experts(tmp_path: Path) -> None:
    """Section 5.3: the value is cut like the factors."""
    base = stacks(tmp_path / "base")
    value = np.random.default_rng(7).normal(size=(2, 6, 4)).astype(np.float32)
    target = experts()
    target = experts(tensors={**target.tensors, "value": from_array(value)})
    merge_checkpoint(Adapter(targets=(target,)), base, tmp_path / "out")
    change = 0.5 * np.einsum("eor,eri->eoi", *(to_array(target.tensors[role]) for role in "BA"))
    assert relative(stacked(tmp_path / "out"), value + change) <= TOLERANCE


UNKNOWN = "how lonely_moe stacks them is not known"
LACKING = "not all tensors that the stack is made of"


@pytest.mark.parametrize(
    ("config", "more", "target", "rule", "message"),
    [
        ({"model_type": "lonely_moe"}, {}, experts(), "M-001", UNKNOWN),
        ({}, {}, experts(), "M-001", "without a config.json nothing tells"),
        (None, {"mlp.experts.2.gate_proj.weight": np.ones((3, 4), np.float32)}, experts(), "M-001", LACKING),
        (None, {"mlp.experts.1.up_proj.weight": np.ones((2, 4), np.float32)}, experts(), "M-002", "do not stack"),
        (
            None,
            {},
            experts(shape=(2, 4, 6), layout=("expert", "in", "out")),
            "M-002",
            r"make \[2, 6, 4\], as expert out in",
        ),
    ],
    ids=["unknown", "unnamed", "lacking", "shapes", "transposed"],
)
def test_what_makes_no_stack_is_refused_by_name(
    config: dict[str, object] | None, more: dict[str, Array], target: Target, rule: str, message: str, tmp_path: Path
) -> None:
    """An unknown architecture, no configuration, a lost expert, other shapes, another axis order."""
    base = stacks(tmp_path / "base", config=config, **more)
    with pytest.raises(InvalidInputError) as refused:
        merge_checkpoint(Adapter(targets=(target,)), base, tmp_path / "out")
    assert [finding.rule for finding in refused.value.findings] == [rule]
    assert re.search(message, refused.value.findings[0].message)
    assert not (tmp_path / "out").exists()


def test_one_expert_cannot_be_changed_twice(tmp_path: Path) -> None:
    """The stack, and one of its tensors by its own name."""
    base = stacks(tmp_path / "base")
    factors = {"A": from_array(np.ones((1, 4), np.float32)), "B": from_array(np.ones((3, 1), np.float32))}
    name = "mlp.experts.1.up_proj.weight"
    one = Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(3, 4), tensors=factors)
    found = fit(Adapter(targets=(experts(), one)), open_base(base), config=open_base(base).config)
    errors = [finding for finding in found.findings if finding.severity is Severity.ERROR]
    assert [(finding.rule, finding.place) for finding in errors] == [("M-007", "mlp.experts.gate_up_proj")]


def test_one_expert_alone_finds_no_place_in_a_stack(tmp_path: Path) -> None:
    """Adapters of before transformers 5 name experts one by one; a base that stores them stacked is named."""
    save_file({"mlp.experts.gate_up_proj": np.ones((2, 6, 4), np.float32)}, tmp_path / "base.safetensors")
    factors = {"A": from_array(np.ones((1, 4), np.float32)), "B": from_array(np.ones((3, 1), np.float32))}
    name = "mlp.experts.1.up_proj.weight"
    one = Target(name=name, kind=Kind.LINEAR, layout=("out", "in"), shape=(3, 4), tensors=factors)
    (finding,) = fit(Adapter(targets=(one,)), open_base(tmp_path / "base.safetensors")).findings
    assert (finding.rule, finding.place) == ("M-001", name)
    assert "all experts of the layer in mlp.experts.gate_up_proj" in finding.message


def test_experts_of_a_quantized_base(tmp_path: Path) -> None:
    """Every tensor that a stack is made of counts as what it stands for, and is quantized again where that is asked."""
    golden, config, expected = vector("fp8")
    whole = to_array(expected)
    names = [f"mlp.experts.{expert}.{part}" for expert in range(2) for part in ("gate_proj", "up_proj")]
    tensors = {key.replace("m.", f"{name}.", 1): each for name in names for key, each in golden.tensors.items()}
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"".join(map(bytes, encode_tensors(tensors, {}))))
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_moe"}))
    out, inner = whole.shape
    rng = np.random.default_rng(8)
    factors = {
        "A": from_array(rng.normal(size=(2, 2, inner)).astype(np.float32)),
        "B": from_array(rng.normal(size=(2, 2 * out, 2)).astype(np.float32)),
    }
    adapter = Adapter(targets=(experts(shape=(2, 2 * out, inner), tensors=factors),))
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "out", MergeOptions(dtype="F32"))
    change = 0.5 * np.einsum("eor,eri->eoi", *(to_array(factors[role]) for role in "BA"))
    wanted = np.concatenate((whole, whole)).astype(np.float32) + change
    assert relative(stacked(tmp_path / "out"), wanted) <= TOLERANCE
    assert recompute(tmp_path / "out", tmp_path / "base", adapter, every=True).answer.value == "holds"
    merge_checkpoint(adapter, tmp_path / "base", tmp_path / "again", MergeOptions(requantize=True))
    written = open_container(tmp_path / "again" / "model.safetensors").entries
    assert written == open_container(tmp_path / "base" / "model.safetensors").entries
    assert recompute(tmp_path / "again", tmp_path / "base", adapter, every=True).answer.value == "holds"


def test_names_that_are_stored_win(tmp_path: Path) -> None:
    """A checkpoint that holds the stack itself is taken at its word."""
    base = stacks(tmp_path / "base", **{"mlp.experts.gate_up_proj": np.zeros((2, 6, 4), np.float32)})
    receipt = merge_checkpoint(Adapter(targets=(experts(),)), base, tmp_path / "out")
    assert [record.name for record in receipt.tensors] == ["mlp.experts.gate_up_proj"]
    assert not model_names(frozenset(), {}).stacks
