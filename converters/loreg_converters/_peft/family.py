"""What a config lets one know about the base model's code, which decides axis orders that no tensor shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lora_registry.adapter import Json

TRANSPOSED_EXPERTS = frozenset({"gpt_oss", "openai_privacy_filter", "aria"})
"""Model types whose experts set ``is_transposed`` (transformers 5.23, ``use_experts_implementation``)."""

IN_OUT_EXPERTS = TRANSPOSED_EXPERTS | {"llama4"}
"""Model types that store experts (expert, in, out), whether they say so or not (transformers 5.23)."""

CONV1D_MODELS = frozenset({"gpt2", "openai", "imagegpt", "decision_transformer", "clvp"})
"""Model types with ``transformers.pytorch_utils.Conv1D`` (transformers 5.23)."""

CONV1D_MODULES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
"""Every attribute to which transformers 5.23 assigns a Conv1D."""

_LIBRARY = re.compile(r"transformers\.models\.(\w+)\.")


@dataclass(frozen=True, slots=True)
class Family:
    """The model type behind an adapter, as far as its config tells.

    Attributes:
        model_type: transformers' name, such as ``gpt_oss``; None where the config does not tell.
        certain: whether it comes from the module that defines the class, and not from a model's name.
    """

    model_type: str | None
    certain: bool

    @property
    def transposed_experts(self) -> bool | None:
        """Whether the module of experts sets ``is_transposed``; None where that is not known."""
        if self.model_type in TRANSPOSED_EXPERTS:
            return True
        return False if self.certain else None

    @property
    def in_out_experts(self) -> bool | None:
        """Whether experts are stored (expert, in, out); None where that is not known."""
        if self.model_type in IN_OUT_EXPERTS:
            return True
        return False if self.certain else None

    @property
    def conv1d(self) -> bool | None:
        """Whether the usual names are Conv1D modules; None where that is not known."""
        if self.model_type in CONV1D_MODELS:
            return True
        return False if self.certain else None


def family(raw: Mapping[str, Json]) -> Family:
    """The family that ``auto_mapping``, or else the base model's name, points at."""
    mapping = raw.get("auto_mapping")
    if isinstance(mapping, dict):
        found = _LIBRARY.match(str(mapping.get("parent_library")))
        if found:
            return Family(found[1], certain=True)
    name = str(raw.get("base_model_name_or_path") or "").lower().replace("-", "_")
    for model_type in sorted(IN_OUT_EXPERTS | (CONV1D_MODELS - {"openai"})):
        if re.search(rf"(?<![a-z0-9]){model_type}(?![a-z0-9])", name):
            return Family(model_type, certain=False)
    return Family(None, certain=False)
