"""One case of :mod:`peft_cases` carried out through files: PEFT saves, loreg reads and merges, and both are compared.

What loreg wrote is held against two merges of PEFT: its own in the types that it has, and one that PEFT makes in
float64 of the very values that the files hold, which is correct to far more digits than any output keeps.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from loreg_converters.peft import converter
from peft import LoraConfig, PeftModel
from peft_adapters import arrays, make_peft_adapter, merged_model
from peft_case_models import build, inputs
from peft_cases import Case
from safetensors.torch import save_file
from torch import nn

from lora_registry.adapter import Adapter
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.ops.arrays import Array, round_to

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_DIGITS = {"F32": 23, "BF16": 7, "F16": 10}
"""Bits behind the first of a significand."""


@dataclass(frozen=True, slots=True)
class Saved:
    """A case on the disk, and the model that PEFT made of it.

    Attributes:
        base: the base as a safetensors file, in ``dtype``.
        adapter: the PEFT folder, factors in float32.
        wrapped: PEFT's model in float32, its base the values that the file holds.
    """

    case: Case
    dtype: str
    base: Path
    adapter: Path
    wrapped: PeftModel

    def read(self) -> Adapter:
        """The adapter as loreg reads it."""
        return converter.read(self.adapter)[0]

    def exact(self) -> dict[str, Array]:
        """PEFT's merge in float64, not rounded."""
        return arrays(merged_model(copy.deepcopy(self.wrapped).double()))

    def of_peft(self) -> dict[str, Array]:
        """PEFT's merge with the base in ``dtype`` and the factors in float32, as PEFT loads them; float64 here."""
        wrapped = copy.deepcopy(self.wrapped)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_" not in name and "modules_to_save" not in name and "trainable_tokens" not in name:
                    parameter.data = parameter.data.to(DTYPES[self.dtype])
        merged = merged_model(wrapped)
        return {name: tensor.detach().double().numpy() for name, tensor in merged.state_dict().items()}

    def outputs(self) -> torch.Tensor:
        """What PEFT's model computes unmerged; of a copy, since attention merges and unmerges, and drifts."""
        with torch.no_grad():
            return copy.deepcopy(self.wrapped)(inputs(self.case.model))

    def outputs_of(self, weights: dict[str, Array]) -> torch.Tensor:
        """What a fresh model computes with ``weights``."""
        model = build(self.case.model, seed=99)
        model.load_state_dict({name: torch.from_numpy(array.astype(np.float32)) for name, array in weights.items()})
        with torch.no_grad():
            return model(inputs(self.case.model))


def save(case: Case, dtype: str, folder: Path, *, seed: int = 0) -> Saved:
    """Build the model and the adapter of ``case``, and put both on the disk."""
    model = build(case.model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(DTYPES[dtype]))
    write_base(model, dtype, folder / "base.safetensors")
    settings = {"init_lora_weights": False, **case.settings}
    wrapped = make_peft_adapter(model, LoraConfig(**settings), folder / "adapter", seed=seed)
    return Saved(case, dtype, folder / "base.safetensors", folder / "adapter", wrapped)


def write_base(model: nn.Module, dtype: str, path: Path) -> None:
    """The state of ``model`` as a safetensors file."""
    save_file({name: tensor.to(DTYPES[dtype]).clone() for name, tensor in model.state_dict().items()}, path)


def merge(saved: Saved, out: Path) -> dict[str, Array]:
    """What loreg makes of the files: the tensors of ``out``."""
    merge_checkpoint(saved.read(), saved.base, out)
    return read(out)


def read(path: Path) -> dict[str, Array]:
    """The tensors of a checkpoint."""
    checkpoint = open_base(path)
    return {name: checkpoint.array(name) for name in checkpoint.names()}


@dataclass(frozen=True, slots=True)
class Distance:
    """How far tensors are from others, element by element.

    Attributes:
        ulps: the largest difference in units of the last place of the larger of W and W', which is what a sum in
            float32 can know where the two cancel.
        different: elements that differ.
        elements: all of them.
    """

    ulps: float
    different: int
    elements: int


def distance(found: dict[str, Array], wanted: dict[str, Array], base: dict[str, Array], dtype: str) -> Distance:
    """How far ``found`` is from ``wanted``, rounded to ``dtype`` once."""
    ulps, different, elements = 0.0, 0, 0
    for name, array in found.items():
        rounded = round_to(wanted[name].astype(np.float64), dtype).astype(np.float64)
        apart = np.abs(array.astype(np.float64) - rounded)
        size = np.maximum(np.abs(rounded), np.abs(base[name].astype(np.float64)))
        unit = 2.0 ** (np.floor(np.log2(np.maximum(size, 2.0**-14))) - _DIGITS[dtype])
        ulps = max(ulps, float((apart / unit).max()))
        different += int(np.count_nonzero(apart))
        elements += array.size
    return Distance(ulps, different, elements)
