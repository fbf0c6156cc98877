"""The LoRA cases of PEFT's own test of merging, as a table: a name, a model, the arguments of ``LoraConfig``.

The 46 entries with a ``LoraConfig`` of ``TEST_CASES``, and the six of ``MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES``, in
``tests/test_custom_models.py`` of PEFT 0.21. Names and configurations are PEFT's, so that a case can be found in both;
the models are ours (:mod:`peft_case_models`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lora_registry.errors import InvalidInputError, LoregError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a case is refused.

    Attributes:
        error: class of loreg's error.
        words: what its message has in it.
        of_peft: class of what PEFT's own merge raises; None where PEFT merges.
    """

    error: type[LoregError]
    words: str
    of_peft: type[Exception] | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One configuration.

    Attributes:
        model: a key of ``peft_case_models.MODELS``.
        settings: keyword arguments of ``LoraConfig``; sub-configurations as the dictionaries that PEFT makes of them.
        refusal: what loreg says instead of merging; None where it gives what PEFT gives.
    """

    model: str
    settings: dict[str, Any] = field(default_factory=dict)
    refusal: Refusal | None = None


KASA = Refusal(UnsupportedError, "kasa_config: KaSA truncates the base weights")
"""PEFT takes the smallest singular values out of the base whenever it loads such an adapter: what it changes is not
known without the base, and the base that is merged is another one."""

GROUPS = Refusal(UnsupportedError, "a grouped conv", NotImplementedError)
"""A sees all inputs, and a group of the base's kernel its own: the change has no place in the kernel (P-006)."""

NO_BIAS = Refusal(InvalidInputError, ".bias: the base has no such tensor", RuntimeError)
"""The bias of B has to go into a bias of the base."""


def _dora(**settings: Any) -> dict[str, Any]:
    return {**settings, "use_dora": True}


LIN0 = {"target_modules": ["lin0"]}
BOTH = {"target_modules": ["lin0", "lin1"]}
CONV1D = {"target_modules": ["conv1d"]}
EMB = {"target_modules": ["emb"]}
EMB_CONV1D = {"target_modules": ["emb", "conv1d"]}
CONV2D = {"target_modules": ["conv2d"]}
CONV2D_LIN0 = {"target_modules": ["conv2d", "lin0"]}
CONV3D = {"target_modules": ["conv3d"]}
CONV3D_LIN0 = {"target_modules": ["conv3d", "lin0"]}
BIASED = {"lora_bias": True, "lora_alpha": 32}

CASES: dict[str, Case] = {
    "Vanilla MLP 1 LoRA": Case("MLP", {"target_modules": "lin0"}),
    "Vanilla MLP 2 LoRA": Case("MLP", LIN0),
    "Vanilla MLP 3 LoRA": Case("MLP", {"target_modules": ["lin1"]}),
    "Vanilla MLP 4 LoRA": Case("MLP", BOTH),
    "Vanilla MLP 5 LoRA": Case("MLP", {**LIN0, "modules_to_save": ["lin1"]}),
    "Vanilla MLP 6 LoRA": Case("MLP", {**LIN0, "lora_alpha": 4, "lora_dropout": 0.1}),
    "Vanilla MLP 7 LoRA with DoRA": Case("MLP", _dora(**LIN0)),
    "Vanilla MLP 8 LoRA with DoRA": Case("MLP", _dora(**BOTH)),
    "Vanilla MLP 1 LoRA with KaSA": Case("MLP", {**LIN0, "kasa_config": {}, "r": 4}, KASA),
    "Vanilla MLP 1 LoRA with MiCA": Case("MLP", {**LIN0, "init_lora_weights": "mica", "r": 4}),
    "Vanilla MLP 9 LoRA with DoRA": Case("MLP", _dora(target_modules="lin1", lora_alpha=32)),
    "Vanilla MLP 10 LoRA with VeLoRA random": Case(
        "MLP", {**LIN0, "velora_config": {"num_groups": 2, "init_type": "random"}}
    ),
    "Vanilla MLP 11 LoRA with VeLoRA batch_average": Case(
        "MLP", {**BOTH, "velora_config": {"num_groups": 2, "init_type": "batch_average"}}
    ),
    "Vanilla MLP 12 LoRA with VeLoRA batch_average_once": Case(
        "MLP", {**LIN0, "velora_config": {"num_groups": 2, "init_type": "batch_average_once"}}
    ),
    "Embedding + transformers Conv1D 1 LoRA": Case("EmbConv1D", CONV1D),
    "Embedding + transformers Conv1D 2 LoRA": Case("EmbConv1D", EMB),
    "Embedding + transformers Conv1D 3 LoRA": Case("EmbConv1D", EMB_CONV1D),
    "Embedding + transformers Conv1D 1 DoRA": Case("EmbConv1D", _dora(**CONV1D)),
    "Embedding + transformers Conv1D 2 DoRA": Case("EmbConv1D", _dora(**EMB)),
    "Embedding + transformers Conv1D 3 DoRA": Case("EmbConv1D", _dora(**EMB_CONV1D)),
    "Embedding + transformers Conv1D 1 LoRA trainable_tokens": Case(
        "EmbConv1D", {**CONV1D, "trainable_token_indices": {"emb": [0, 10]}}
    ),
    "Conv1d LoRA": Case("Conv1d", CONV1D),
    "Conv1d LoRA with DoRA": Case("Conv1d", _dora(**CONV1D)),
    "Conv2d 1 LoRA": Case("Conv2d", CONV2D),
    "Conv2d 2 LoRA": Case("Conv2d", CONV2D_LIN0),
    "Conv2d 1 LoRA with DoRA": Case("Conv2d", _dora(**CONV2D)),
    "Conv2d 2 LoRA with DoRA": Case("Conv2d", _dora(**CONV2D_LIN0)),
    "Conv2d Groups LoRA": Case("Conv2dGroups", CONV2D, GROUPS),
    "Conv2d Groups2 LoRA": Case("Conv2dGroups2", CONV2D, GROUPS),
    "Conv2d Groups LoRA with DoRA": Case("Conv2dGroups", _dora(**CONV2D), GROUPS),
    "Conv2d Groups2 LoRA with DoRA": Case("Conv2dGroups2", _dora(**CONV2D), GROUPS),
    "Conv3d 1 LoRA": Case("Conv3d", CONV3D),
    "Conv3d 2 LoRA": Case("Conv3d", CONV3D_LIN0),
    "Conv3d 1 LoRA with DoRA": Case("Conv3d", _dora(**CONV3D)),
    "Conv3d 2 LoRA with DoRA": Case("Conv3d", _dora(**CONV3D_LIN0)),
    "Vanilla MLP 1 LoRA with lora_b bias": Case("MLP", {**BOTH, **BIASED}),
    "Conv2d 1 LoRA with lora_b bias": Case("Conv2d", {**CONV2D, **BIASED}),
    "Conv3d 1 LoRA with lora_b bias": Case("Conv3d", {**CONV3D, **BIASED}),
    "MHA 1 LoRA": Case("MHA", {"target_modules": ["mha"]}),
    "MHA 2 LoRA": Case("MHA", {"target_modules": ["mha", "lin0"]}),
    "MLP 1 using nn.Parameter LoRA": Case("MlpUsingParameters", {"target_parameters": ["lin0.weight"]}),
    "MLP 2 using nn.Parameter LoRA": Case("MLP", {**LIN0, "target_parameters": ["lin1.weight"]}),
    "Vanilla MLP 1 LoRA with Monteclora": Case("MLP", {**LIN0, "monteclora_config": {"num_samples": 2}}),
    "BD-LoRA A only": Case("MLP", {**BOTH, "use_bdlora": {"target_modules_bd_a": ["lin0"], "match_strict": False}}),
    "BD-LoRA B only": Case(
        "MLP", {**BOTH, "use_bdlora": {"target_modules_bd_b": ["lin1"], "nblocks": 2, "match_strict": False}}
    ),
    "BD-LoRA both A and B": Case(
        "MLP",
        {**BOTH, "use_bdlora": {"target_modules_bd_a": ["lin0"], "target_modules_bd_b": ["lin1"], "nblocks": 2}},
    ),
}
"""The 46 configurations of one adapter, by PEFT's names, and what becomes of each."""

WITHOUT_BIAS: dict[str, Case] = {
    "linear": Case("MLP without biases", {**BOTH, "lora_bias": True}, NO_BIAS),
    "conv2d": Case("Conv2d without biases", {**CONV2D, "lora_bias": True}, NO_BIAS),
}
"""``test_merge_with_lora_bias_when_base_layer_has_no_bias_warns_and_raises``."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two adapters on one model.

    Attributes:
        model: a key of ``peft_case_models.MODELS``.
        one: keyword arguments of the first ``LoraConfig``.
        two: of the second.
        alone: whether PEFT has no model with both.
    """

    model: str
    one: dict[str, Any]
    two: dict[str, Any]
    alone: bool = False


def _rows(*rows: int) -> dict[str, Any]:
    return {"trainable_token_indices": {"emb": list(rows)}}


PAIRS: dict[str, Pair] = {
    "LoRA Same": Pair("MLP", LIN0, LIN0),
    "LoRA Different": Pair("MLP", LIN0, {"target_modules": ["lin1"]}),
    "LoRA + trainable tokens Same": Pair("EmbConv1D", {**LIN0, **_rows(0, 1, 2)}, {**LIN0, **_rows(3, 4, 5, 6)}),
    "LoRA + trainable tokens Different": Pair("EmbConv1D", {**LIN0, **_rows(0, 1, 2)}, {**CONV1D, **_rows(3, 4, 5, 6)}),
    "LoRA targeting nn.Parameter Same": Pair(
        "MLP", {"target_parameters": ["lin0.weight"]}, {"target_parameters": ["lin0.weight"]}
    ),
    "LoRA targeting nn.Parameter Different": Pair(
        "MLP", {"target_parameters": ["lin0.weight"]}, {"target_parameters": ["lin1.weight"]}, alone=True
    ),
}
"""The six LoRA entries of ``MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES``."""
