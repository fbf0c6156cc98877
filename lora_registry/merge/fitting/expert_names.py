"""How checkpoints name what a model of transformers 5 holds as one stack of experts.

A model in memory has one parameter for all experts of a layer, and adapters name that one; the checkpoint has a
tensor for each expert, and two of them where gate and up projection are one parameter. transformers goes from one
to the other by a table of its own (5.23, ``conversion_mapping.py``), of which this is the part that is about
experts. Everywhere in it, experts are stacked along a new first axis (``MergeModulelist(dim=0)``) and gate and up
projection follow each other along the outputs (``Concatenate(dim=1)``); nothing is transposed or interleaved. A
test holds every line of this table against that one.

Models that hold their experts in other ways, such as gpt_oss, whose checkpoints have the stacks themselves, need
no line.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from lora_registry.adapter import Json


@dataclass(frozen=True, slots=True)
class Convention:
    """The names of one kind of checkpoint.

    Attributes:
        stacks: end of the name of a parameter to the ends of the names of the tensors that it is made of, one for
            each run of its outputs, with ``*`` for the number of the expert.
        renamed: parts of names as stored, and what they are in the model, in the order in which they are replaced;
            the names in ``stacks`` are those after it.
    """

    stacks: Mapping[str, tuple[str, ...]]
    renamed: tuple[tuple[str, str], ...] = ()


def _gated(module: str, gate: str, up: str, down: str) -> dict[str, tuple[str, ...]]:
    stored = f"{module}.experts.*"
    return {
        f"{module}.experts.gate_up_proj": (f"{stored}.{gate}.weight", f"{stored}.{up}.weight"),
        f"{module}.experts.down_proj": (f"{stored}.{down}.weight",),
    }


_PROJECTIONS = _gated("mlp", "gate_proj", "up_proj", "down_proj")
_NUMBERED = _gated("mlp", "w1", "w3", "w2")
_SPARSE = (".block_sparse_moe.", ".mlp.")

_LIKE_QWEN = """afmoe beam cohere2_moe deepseek_v2 deepseek_v3 deepseek_v32 dots1 flex_olmo glm4_moe glm4_moe_lite
glm4v_moe glm_moe_dsa hunyuan_v1_moe longcat_flash mellum olmoe qwen2_moe qwen3_moe qwen3_next qwen3_omni_moe
qwen3_omni_moe_text qwen3_omni_moe_thinker solar_open"""

CONVENTIONS: Mapping[str, Convention] = {
    **dict.fromkeys(_LIKE_QWEN.split(), Convention(_PROJECTIONS)),
    "axk1": Convention(_PROJECTIONS, (("post_mlp_layernorm", "mlp.post_mlp_layernorm"),)),
    "ernie4_5_moe": Convention(
        _PROJECTIONS, (("mlp.moe_statics.e_score_correction_bias", "mlp.gate.moe_statics.e_score_correction_bias"),)
    ),
    "exaone_moe": Convention(_PROJECTIONS, (("mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"),)),
    "flint": Convention(_PROJECTIONS, (("self_attn.softmax_offset", "self_attn.sinks"),)),
    "mimo_v2_flash": Convention(_PROJECTIONS, (("self_attn.attention_sink_bias", "self_attn.sinks"),)),
    "jamba": Convention(_gated("feed_forward", "gate_proj", "up_proj", "down_proj")),
    "lfm2_moe": Convention(_gated("feed_forward", "w1", "w3", "w2")),
    "minimax": Convention(_NUMBERED, (_SPARSE,)),
    "minimax_m2": Convention(
        _NUMBERED, (_SPARSE, (".block_sparse_moe.e_score_correction_bias", ".mlp.e_score_correction_bias"))
    ),
    "mixtral": Convention(_NUMBERED, (_SPARSE,)),
    "nemotron_h": Convention(
        {f"mixer.experts.{name}": (f"mixer.experts.*.{name}.weight",) for name in ("up_proj", "down_proj")},
        (("backbone.", "model."),),
    ),
    "phimoe": Convention(_NUMBERED, (_SPARSE, (".gate.weight", ".router.weight"))),
}
"""Model type, as a configuration has it, to its convention."""


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Names of a model's parameters that are not those of its checkpoint's tensors.

    Attributes:
        stacks: name of a stack to the tensors that it is made of: for each expert, one for each run of outputs.
        renamed: name of a parameter to that of the one tensor that holds it.
    """

    stacks: Mapping[str, tuple[tuple[str, ...], ...]]
    renamed: Mapping[str, str]


def model_type(config: Mapping[str, Json]) -> str | None:
    """The model type of a configuration; None where it has none."""
    found = config.get("model_type")
    return found if isinstance(found, str) else None


def model_names(names: Collection[str], config: Mapping[str, Json]) -> ModelNames:
    """What the model calls the tensors of a checkpoint, where it is not what the checkpoint calls them.

    Args:
        names: of the tensors.
        config: the configuration beside them, whose ``model_type`` decides.

    Returns:
        Nothing for a model type without a line in :data:`CONVENTIONS`. A stack that lacks a tensor is left out.
    """
    convention = CONVENTIONS.get(model_type(config) or "")
    if convention is None:
        return ModelNames({}, {})
    patterns = [
        (stack, run, _pattern(stored))
        for stack, sources in convention.stacks.items()
        for run, stored in enumerate(sources)
    ]
    found: dict[tuple[str, str], dict[tuple[int, int], str]] = defaultdict(dict)
    renamed: dict[str, str] = {}
    for name in names:
        own = name
        for before, after in convention.renamed:
            own = own.replace(before, after)
        for stack, run, pattern in patterns:
            if match := pattern.fullmatch(own):
                found[match[1] + stack, stack][int(match[2]), run] = name
                break
        else:
            if own != name and own not in names:
                renamed[own] = name
    stacks = {}
    for (name, stack), places in found.items():
        runs = len(convention.stacks[stack])
        experts = len(places) // runs
        if places.keys() == {(expert, run) for expert in range(experts) for run in range(runs)}:
            stacks[name] = tuple(tuple(places[expert, run] for run in range(runs)) for expert in range(experts))
    return ModelNames(stacks, renamed)


def _pattern(stored: str) -> re.Pattern[str]:
    """What matches a whole name that ends like ``stored``: what comes before, and the number of the expert."""
    before, after = (re.escape(part) for part in stored.split("*"))
    return re.compile(rf"((?:.*\.)?){before}(0|[1-9][0-9]*){after}", re.ASCII)


def kept_apart(name: str, names: Collection[str]) -> bool:
    """Whether ``names`` hold the experts of the stack ``name`` one by one, whatever they call their parts."""
    module = re.escape(name.rpartition(".")[0].rpartition(".")[2])
    single = re.compile(rf"(?:.*\.)?{module}\.\d+\..+")
    return bool(module) and any(single.fullmatch(each) for each in names)
