"""Adapters that PEFT converts, scales or nests in a way of its own, through files: their merges are PEFT's.

The cases are those of PEFT's ``tests/test_initialization.py`` (conversions of PiSSA, OLoRA, CorDA and LoRA-GA; rsLoRA,
patterns of ranks and alphas), ``tests/test_target_parameters.py`` and ``tests/test_trainable_tokens.py`` (0.21).
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from peft_adapters import arrays, edit_saved, make_peft_adapter, merged_model, peft_warnings_off
from peft_case_runs import read, write_base
from tiny_models import MODELS as TINY
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig, Llama4TextConfig, MixtralConfig, PreTrainedModel
from transformers.models.llama4.modeling_llama4 import Llama4ForCausalLM

from lora_registry.cli import main
from lora_registry.errors import LoregError, UnsupportedError
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import Array


def same(found: dict[str, Array], wanted: dict[str, Array], rtol: float = 1e-5) -> bool:
    """Each tensor within ``rtol`` of its largest element."""
    return all(np.abs(array - wanted[name]).max() <= rtol * np.abs(wanted[name]).max() for name, array in found.items())


def two_layers() -> nn.Module:
    """Layers large enough for rank 8, and a third that nothing is trained on."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 20), nn.Linear(20, 16), nn.Linear(16, 3)).eval()


INITIALIZATIONS: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "pissa by iterations": {"init_lora_weights": "pissa_niter_4"},
    "olora": {"init_lora_weights": "olora"},
    "corda ipm": {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="ipm")},
    "corda kpm": {"init_lora_weights": "corda", "corda_config": CordaConfig(corda_method="kpm")},
    "lora-ga": {"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()},
}

SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {"r": 8, "lora_alpha": 8},
    "rank pattern": {"r": 8, "rank_pattern": {"1": 5}},
    "alpha pattern": {"r": 8, "alpha_pattern": {"0": 5, "1": 3}},
    "rslora": {"r": 8, "use_rslora": True},
}


def trained(folder: Path, **settings: Any) -> tuple[dict[str, Array], Path]:
    """PEFT's merge of a trained adapter on the base that its initialization changed, and the adapter as converted.

    The base as it was is ``base.safetensors``.
    """
    base = two_layers()
    write_base(base, "F32", folder / "base.safetensors")
    config = LoraConfig(target_modules=["0", "1"], **copy.deepcopy(settings))
    with peft_warnings_off():
        if config.init_lora_weights == "corda":
            batch = torch.randn(200, 24)
            preprocess_corda(base, config, run_model=lambda: base(batch), hooked_model=base)
        elif config.init_lora_weights == "lora_ga":
            preprocess_loraga(base, config, lambda: base(torch.randn(50, 24)).square().sum().backward())
        wrapped = get_peft_model(copy.deepcopy(base), config)
        name = config.init_lora_weights
        wrapped.peft_config["default"].init_lora_weights = True
        wrapped.save_pretrained(folder / "began")
        wrapped.peft_config["default"].init_lora_weights = name
        with torch.no_grad():
            for layer in (wrapped.base_model.model[0], wrapped.base_model.model[1]):
                for factor in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                    factor.add_(torch.randn_like(factor) * 0.2)
        wrapped.save_pretrained(folder / "raw")
        wrapped.save_pretrained(folder / "converted", path_initial_model_for_weight_conversion=str(folder / "began"))
        # What the initialization took out of the base is in this model, which was never saved without it.
        return arrays(wrapped.merge_and_unload()), folder / "converted"


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("initialization", INITIALIZATIONS)
def test_a_converted_adapter_merges_into_the_base_as_it_was(initialization: str, scaling: str, tmp_path: Path) -> None:
    """Twice the rank, and PEFT's model on the changed base: the same weights, through the command line."""
    wanted, folder = trained(tmp_path, **INITIALIZATIONS[initialization], **SCALINGS[scaling])
    base, out = tmp_path / "base.safetensors", tmp_path / "out.safetensors"
    runner = CliRunner(env={"LOREG_HOME": str(tmp_path / "home")})
    done = runner.invoke(main, ["merge", str(folder), "--base", str(base), "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert same(read(out), wanted)
    assert not same(read(base), wanted, rtol=1e-2)
    with pytest.raises(UnsupportedError, match="init_lora_weights"):
        converter.read(tmp_path / "raw")


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_factors_that_pissa_began_with_beside_it(scaling: str, tmp_path: Path) -> None:
    """As LLaMA-Factory leaves them: no conversion, and the same merge into the base as it was."""
    wanted, converted = trained(tmp_path, init_lora_weights="pissa", **SCALINGS[scaling])
    shutil.copytree(tmp_path / "began", tmp_path / "raw" / "pissa_init")
    for folder, name in ((tmp_path / "raw", "raw"), (converted, "converted")):
        out = tmp_path / f"{name}.safetensors"
        merge_checkpoint(converter.read(folder)[0], tmp_path / "base.safetensors", out)
        assert same(read(out), wanted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("factor", ["lora_A", "lora_B", "lora_magnitude_vector"])
def test_what_is_not_finite_is_refused(factor: str, value: float, tmp_path: Path) -> None:
    """``_test_merge_layers_nan``: PEFT refuses where ``safe_merge`` is asked for; here always, and nothing is left."""
    base = two_layers()
    write_base(base, "F32", tmp_path / "base.safetensors")
    config = LoraConfig(target_modules=["0", "1"], use_dora=True)
    wrapped = make_peft_adapter(base, config, tmp_path / "adapter")

    def spoil(tensors: dict[str, Array], config: dict[str, Any]) -> None:
        next(array for name, array in tensors.items() if factor in name).reshape(-1)[0] = value

    edit_saved(tmp_path / "adapter", spoil)
    with pytest.raises(LoregError, match="finite"):
        merge_checkpoint(
            converter.read(tmp_path / "adapter")[0], tmp_path / "base.safetensors", tmp_path / "out.safetensors"
        )
    assert not (tmp_path / "out.safetensors").exists()
    with torch.no_grad():
        next(each for name, each in wrapped.named_parameters() if factor in name).view(-1)[0] = value
    with pytest.raises(ValueError, match="NaNs detected"):
        wrapped.merge_and_unload(safe_merge=True)


@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_of_patterns(rslora: bool, tmp_path: Path) -> None:
    """By module and by expression, the first that matches; with rsLoRA by the root of the rank of each."""
    model = TINY["llama-untied"]()
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(
        r=5,
        lora_alpha=7,
        use_rslora=rslora,
        target_modules=["q_proj", "v_proj", "up_proj"],
        rank_pattern={r"layers\.0\.self_attn\.q_proj": 2, r".*\.1\..*_proj": 9},
        alpha_pattern={"v_proj": 1.5, r"^model\.layers\.1\.mlp\.up_proj": 11},
    )
    wrapped = make_peft_adapter(model, config, tmp_path / "adapter")
    merge_checkpoint(converter.read(tmp_path / "adapter")[0], tmp_path / "base", tmp_path / "out")
    assert same(read(tmp_path / "out"), arrays(merged_model(wrapped)))


SMALL = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "max_position_embeddings": 32, "intermediate_size": 12, "num_local_experts": 3,
}  # fmt: skip

MIXTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama4": lambda: Llama4ForCausalLM(
        Llama4TextConfig(**SMALL, num_experts_per_tok=1, intermediate_size_mlp=20, interleave_moe_layer_step=1)
    ),
    "gpt_oss": lambda: AutoModelForCausalLM.from_config(GptOssConfig(**SMALL, num_experts_per_tok=2)),
    "mixtral": lambda: AutoModelForCausalLM.from_config(MixtralConfig(**SMALL, num_experts_per_tok=2)),
}


@pytest.mark.parametrize("both", [True, False], ids=["both parameters", "one parameter"])
@pytest.mark.parametrize("name", MIXTURES)
def test_stacked_experts(name: str, both: bool, tmp_path: Path) -> None:
    """Stored inputs first with and without saying so, and outputs first in a checkpoint that has experts one by one."""
    torch.manual_seed(0)
    model = MIXTURES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(tmp_path / "base")
    parameters = ["experts.gate_up_proj", "experts.down_proj"][: 1 + both]
    config = LoraConfig(r=4, target_modules=["q_proj"], target_parameters=parameters)
    wrapped = make_peft_adapter(model, config, tmp_path / "adapter")
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        wanted = wrapped(tokens).logits
        merge_checkpoint(converter.read(tmp_path / "adapter")[0], tmp_path / "base", tmp_path / "out")
        found = type(model).from_pretrained(tmp_path / "out").eval()(tokens).logits
        before = type(model).from_pretrained(tmp_path / "base").eval()(tokens).logits
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, wanted, rtol=1e-2, atol=1e-2)


def test_a_weight_that_is_targeted_as_a_parameter_is_the_weight_of_its_module(tmp_path: Path) -> None:
    """``test_targeting_module_and_targeting_param_equivalent``."""
    model = TINY["llama-untied"]()
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=[], target_parameters=["gate_proj.weight"])
    wrapped = make_peft_adapter(model, config, tmp_path / "adapter")
    merge_checkpoint(converter.read(tmp_path / "adapter")[0], tmp_path / "base", tmp_path / "out")
    assert same(read(tmp_path / "out"), arrays(merged_model(wrapped)))


@pytest.mark.parametrize("tied", ["llama-tied", "llama-untied"])
def test_trained_rows_are_those_of_the_head_where_it_is_the_same_tensor(tied: str, tmp_path: Path) -> None:
    """PEFT ties the head's rows to the embedding's; a head of its own keeps what it has. By PEFT's outputs."""
    model = TINY[tied]()
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 2, 5]})
    wrapped = make_peft_adapter(model, config, tmp_path / "adapter")
    tokens = torch.arange(12).view(2, 6)
    merge_checkpoint(converter.read(tmp_path / "adapter")[0], tmp_path / "base", tmp_path / "out")
    with torch.no_grad():
        found = type(model).from_pretrained(tmp_path / "out").eval()(tokens).logits
        assert torch.allclose(found, wrapped(tokens).logits, rtol=1e-4, atol=1e-4)
    assert same(read(tmp_path / "out"), arrays(merged_model(wrapped)))


def test_a_merged_model_that_peft_loads_has_the_outputs_of_the_adapter(tmp_path: Path) -> None:
    """``load_merged_and_unmerged_same_weights``: from the folders alone, once merged by loreg and once by PEFT."""
    model = TINY["llama-untied"]()
    model.save_pretrained(tmp_path / "base")
    make_peft_adapter(model, LoraConfig(target_modules="all-linear", use_dora=True), tmp_path / "adapter")
    merge_checkpoint(converter.read(tmp_path / "adapter")[0], tmp_path / "base", tmp_path / "out")
    tokens = torch.arange(12).view(2, 6)
    kind = type(TINY["llama-untied"]())
    with torch.no_grad():
        ours = kind.from_pretrained(tmp_path / "out").eval()(tokens).logits
        theirs = PeftModel.from_pretrained(kind.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
        assert torch.allclose(ours, theirs(tokens).logits, rtol=1e-4, atol=1e-4)
