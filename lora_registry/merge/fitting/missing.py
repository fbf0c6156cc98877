"""Targets for which the base has no tensor, and why that may be."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches

from lora_registry.adapter import Json, Kind, Target
from lora_registry.findings import Finding
from lora_registry.merge.fitting.expert_names import CONVENTIONS, kept_apart, model_type

_QUANTIZED_BESIDE = ("absmax", "quant_state", "qweight", "weight_packed", "weight_scale", "weight_scale_inv", "SCB")
"""Tensors that bitsandbytes, GPTQ, AWQ, compressed-tensors and FP8 checkpoints keep beside a packed weight."""

_ONE_EXPERT = re.compile(r"(.*\bexperts\.)\d+\.", re.ASCII)

_SUGGESTED = 10  # names that are compared with all of a base's names to find a close one


def findings_of_missing(missing: list[Target], names: Collection[str], config: Mapping[str, Json]) -> Iterator[Finding]:
    """Say of every target without a tensor why it has none: M-001, or M-003 where it is there quantized.

    Args:
        missing: the targets.
        names: of the base's tensors.
        config: the configuration of the base.
    """
    modules = {name.rpartition(".")[0] for name in names if name.endswith(_QUANTIZED_BESIDE)}
    for position, target in enumerate(missing):
        module = target.name.rpartition(".")[0]
        if any(packed == module or packed.endswith("." + module) for packed in modules):
            yield Finding("M-003", target.name, "the base holds it quantized; merge into the unquantized base")
            continue
        if target.kind is Kind.EXPERTS and kept_apart(target.name, names):
            yield Finding("M-001", target.name, _unknown_experts(model_type(config)))
            continue
        if stack := _stacked_with(target.name, names):
            message = f"the base stores all experts of the layer in {stack}; changes of one expert alone find no place"
            yield Finding("M-001", target.name, message)
            continue
        alike = [name for name in names if name.rpartition(".")[2] == target.name.rpartition(".")[2]]
        close = get_close_matches(target.name, alike, n=1) if position < _SUGGESTED else []
        hint = f"; did you mean {close[0]}" if close else ""
        extra = ", and new tensors were not allowed" if target.kind is Kind.FULL else ""
        yield Finding("M-001", target.name, f"the base has no such tensor{extra}{hint}")


def _stacked_with(name: str, names: Collection[str]) -> str | None:
    """A tensor of the base for all experts of the layer of which ``name`` is one expert's."""
    own = _ONE_EXPERT.match(name)
    if own is None:
        return None
    of_layer = sorted(each for each in names if each.startswith(own[1]))
    return of_layer[0] if of_layer and not any(_ONE_EXPERT.match(each) for each in of_layer) else None


def _unknown_experts(model: str | None) -> str:
    """Why experts that are stored one by one make no stack here."""
    if model is None:
        return "the base stores every expert by itself, and without a config.json nothing tells how they are stacked"
    if model in CONVENTIONS:
        return "the base stores every expert by itself, and not all tensors that the stack is made of"
    return f"the base stores every expert by itself, and how {model} stacks them is not known here"
