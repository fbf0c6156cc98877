"""Tiny torch models, and PEFT adapters on them whose every trained number is random."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lora_registry.adapter import Target, Tensor

NUMPY = {"F32": "f4", "F64": "f8", "F16": "f2", "I64": "i8"}


class MLP(nn.Module):
    """10 to 20 to 2, with a norm between."""

    def __init__(self) -> None:
        super().__init__()
        self.lin0, self.lin1, self.norm = nn.Linear(10, 20), nn.Linear(20, 2), nn.LayerNorm(20)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin1(self.norm(self.lin0(x)).relu())


class Mixed(nn.Module):
    """One of each kind of module that PEFT's LoRA knows."""

    def __init__(self) -> None:
        super().__init__()
        self.wte, self.c_attn = nn.Embedding(30, 8), Conv1D(12, 8)
        self.mha, self.lin = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 5)
        self.conv1, self.conv2, self.conv3 = nn.Conv1d(12, 6, 2), nn.Conv2d(1, 4, 3), nn.Conv3d(1, 3, (1, 2, 2))
        self.grouped = nn.Conv2d(4, 4, 3, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.c_attn(self.wte(x))
        h = self.mha(h, h, h)[0]
        h = h + self.conv1(h.transpose(1, 2)).mean() + self.grouped(self.conv2(h[:, None])).mean()
        return self.lin(h + self.conv3(h[:, None, None]).mean())


class Experts(nn.Module):
    """The parameters of a gated mixture of experts, in the order in which transformers registers them."""

    def __init__(self, experts: int = 3, hidden: int = 6, inner: int = 4) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.randn(experts, hidden, inner))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = torch.einsum("bh,eoh->beo", x, self.gate_up_proj).chunk(2, -1)
        return torch.einsum("bei,ehi->bh", gate.sigmoid() * up, self.down_proj)


class MoE(nn.Module):
    """Experts between two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.experts, self.last = nn.Linear(6, 6), Experts(), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.experts(self.first(x)))


INPUTS: dict[type[nn.Module], Callable[[], torch.Tensor]] = {
    MLP: lambda: torch.rand(3, 10),
    Mixed: lambda: torch.randint(0, 30, (2, 7)),
    MoE: lambda: torch.rand(3, 6),
}

CASES: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "linear": (MLP, {"target_modules": ["lin0"]}),
    "two linear, odd alpha": (MLP, {"target_modules": ["lin0", "lin1"], "r": 3, "lora_alpha": 7}),
    "rslora": (MLP, {"target_modules": ["lin0", "lin1"], "use_rslora": True, "r": 6, "lora_alpha": 5}),
    "regex target": (MLP, {"target_modules": r".*lin\d"}),
    "patterns": (
        MLP,
        {
            "target_modules": ["lin0", "lin1"],
            "rank_pattern": {"^lin0": 2, "lin.": 5},
            "alpha_pattern": {"^li[mn]0": 3, "lin0": 11},
        },
    ),
    "float alpha": (MLP, {"target_modules": ["lin0"], "r": 7, "lora_alpha": 0.3}),
    "dora": (MLP, {"target_modules": ["lin0", "lin1"], "use_dora": True}),
    "lora_bias": (MLP, {"target_modules": ["lin0", "lin1"], "lora_bias": True}),
    "bias all": (MLP, {"target_modules": ["lin0"], "bias": "all"}),
    "bias lora_only": (MLP, {"target_modules": ["lin0"], "bias": "lora_only"}),
    "modules_to_save": (MLP, {"target_modules": ["lin0"], "modules_to_save": ["lin1", "norm"]}),
    "saved by the end of a name": (MLP, {"target_modules": ["lin0"], "modules_to_save": ["orm"]}),
    "Conv1D": (Mixed, {"target_modules": ["c_attn"]}),
    "Conv1D dora": (Mixed, {"target_modules": ["c_attn"], "use_dora": True, "fan_in_fan_out": True}),
    "embedding": (Mixed, {"target_modules": ["wte", "lin"]}),
    "embedding dora": (Mixed, {"target_modules": ["wte"], "use_dora": True}),
    "conv1d": (Mixed, {"target_modules": ["conv1"]}),
    "conv2d": (Mixed, {"target_modules": ["conv2"]}),
    "conv2d rslora": (Mixed, {"target_modules": ["conv2"], "use_rslora": True}),
    "conv3d": (Mixed, {"target_modules": ["conv3"]}),
    "conv dora": (Mixed, {"target_modules": ["conv1", "conv2", "conv3"], "use_dora": True}),
    "grouped conv": (Mixed, {"target_modules": ["grouped"]}),
    "attention": (Mixed, {"target_modules": ["mha"]}),
    "trained tokens": (Mixed, {"target_modules": ["lin"], "trainable_token_indices": {"wte": [5, 1, 3]}}),
    "everything": (Mixed, {"target_modules": ["wte", "mha", "lin", "conv1", "conv2", "grouped"], "bias": "lora_only"}),
    "one parameter": (MoE, {"target_modules": [], "target_parameters": ["experts.down_proj"]}),
    "two parameters": (
        MoE,
        {"target_modules": ["first"], "target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    ),
    "parameter ranks": (
        MoE,
        {
            "target_modules": [],
            "target_parameters": ["experts.down_proj", "experts.gate_up_proj"],
            "rank_pattern": {"experts.down_proj": 3},
        },
    ),
    "two-dimensional parameter": (MoE, {"target_modules": [], "target_parameters": ["last.weight", "first.weight"]}),
    "velora": (MLP, {"target_modules": ["lin0"], "velora_config": {"num_groups": 5}}),
    "monteclora": (MLP, {"target_modules": ["lin0"], "monteclora_config": {"num_samples": 2}}),
}
"""After the LoRA cases of PEFT's own tests/test_custom_models.py."""


def adapted(model: type[nn.Module], folder: Path, **config: Any) -> PeftModel:
    """A PEFT model with random adapter, saved to ``folder``."""
    torch.manual_seed(1)
    options = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = get_peft_model(model(), LoraConfig(**options)).eval()
        with torch.no_grad():
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        wrapped.save_pretrained(folder)
    return wrapped


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PeftModel, Path]:
    """A PEFT model of one of ``CASES`` and the folder that it was saved to."""
    model, config = CASES[request.param]
    return adapted(model, tmp_path / "saved", **config), tmp_path / "saved"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with LoRA on the two linear layers of an MLP."""
    adapted(MLP, tmp_path / "saved", target_modules=["lin0", "lin1"])
    return tmp_path / "saved"


@pytest.fixture
def adapt(tmp_path: Path) -> Callable[..., tuple[PeftModel, Path]]:
    """Make an adapter on a named model: ``adapt("MLP", target_modules=[...])``."""
    models = {"MLP": MLP, "Mixed": Mixed, "MoE": MoE}

    def make(name: str, **config: Any) -> tuple[PeftModel, Path]:
        return adapted(models[name], tmp_path / "saved", **config), tmp_path / "saved"

    return make


@pytest.fixture
def edit() -> Callable[..., None]:
    """Change fields of a saved config; a field set to ``...`` is taken out."""

    def change(folder: Path, **fields: Any) -> None:
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))

    return change


@pytest.fixture
def inputs() -> Callable[[PeftModel], torch.Tensor]:
    """Input for a wrapped model, the same each time."""

    def make(wrapped: PeftModel) -> torch.Tensor:
        torch.manual_seed(2)
        return INPUTS[type(wrapped.base_model.model)]()

    return make


@pytest.fixture
def reloaded() -> Callable[[PeftModel, Path], PeftModel]:
    """Load a folder with PEFT on a fresh copy of the base of a wrapped model."""

    def load(wrapped: PeftModel, folder: Path) -> PeftModel:
        torch.manual_seed(1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return PeftModel.from_pretrained(type(wrapped.base_model.model)(), folder).eval()

    return load


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as float64."""
    return np.frombuffer(tensor.data, NUMPY[tensor.dtype]).reshape(tensor.shape).astype("f8")


def change(target: Target) -> np.ndarray:
    """s·B·A by the definitions of the spec, in the stored layout; written apart from the code under test."""
    a, b = array(target.tensors["A"]), array(target.tensors["B"])
    match target.kind.value:
        case "experts":
            logical = np.einsum("eor,eri->eoi", b, a)
            if target.layout == ("expert", "in", "out"):
                logical = logical.transpose(0, 2, 1)
        case "conv":
            logical = np.einsum("or,r...->o...", b.reshape(b.shape[:2]), a)
        case _:
            logical = b @ a
            if target.layout == ("in", "out"):
                logical = logical.T
    return target.scale * logical


@pytest.fixture
def delta() -> Callable[[Target], np.ndarray]:
    """s·B·A of a target in float64."""
    return change
