"""The config of a PEFT folder: what the adapter came with, changed only where it no longer says the truth."""

from __future__ import annotations

from collections.abc import Mapping

from lora_registry.adapter import Adapter, Json, Tensor
from lora_registry.convert.report import Report
from lora_registry.errors import InvalidInputError, UnsupportedError
from loreg_converters._peft.config import Config, checked_config
from loreg_converters._peft.experts import WRITTEN_VERSION, Era, era, expert_layout
from loreg_converters._peft.family import family
from loreg_converters._peft.keys import PREFIX
from loreg_converters._peft.layouts import IN_OUT, linear_layouts
from loreg_converters._peft.plan import Plan
from loreg_converters._peft.problems import refuse, unsupported
from loreg_converters._peft.regex import PatternError
from loreg_converters._peft.scaling import CompiledScaling, Scaling, synthesize
from loreg_converters._peft.tokens import rearranged, rows_of

_FRESH: Mapping[str, Json] = {
    "auto_mapping": None, "bias": "none", "fan_in_fan_out": False, "inference_mode": True, "init_lora_weights": True,
    "lora_alpha": 8, "lora_bias": False, "lora_dropout": 0.0, "modules_to_save": None, "peft_type": "LORA",
    "peft_version": WRITTEN_VERSION, "r": 8, "target_modules": [], "target_parameters": None, "task_type": None,
    "trainable_token_indices": None, "use_dora": False, "use_rslora": False,
}  # fmt: skip


def original_config(adapter: Adapter, report: Report) -> Config | None:
    """The config that the adapter came with, if it came from PEFT and its config still can be read."""
    raw = adapter.origin.get("config")
    if adapter.origin.get("format") != "peft" or not isinstance(raw, dict):
        return None
    try:
        return checked_config({**raw, "base_model_name_or_path": adapter.base.name}, "origin")
    except InvalidInputError as error:
        report.dropped("origin", f"the recorded config cannot be used: {error}")
        return None


def expert_swaps(adapter: Adapter, original: Config | None, report: Report) -> dict[str, bool]:
    """Experts target to whether its factors must take each other's place for PEFT >= 0.19.1 to read them.

    Files of that era are written as they were. The others hold, in (expert, in, out), the transposed
    factors of what a module without ``is_transposed`` takes today.
    """
    experts = [target for target in adapter if target.layout[:1] == ("expert",)]
    if not experts or (original is not None and _is_new(original)):
        return {}
    raw: dict[str, Json] = {**(original.raw if original else {}), "base_model_name_or_path": adapter.base.name}
    expected, certain = expert_layout(Era.NEW, transposed=family(raw).transposed_experts)
    if original is not None:
        report.kept("peft_version", f"written in the layout of PEFT >= {WRITTEN_VERSION}, read from {original.version}")
    doubt = "" if certain else ", unless the base's module sets is_transposed, which PEFT would find by the shapes"
    for target in experts:
        if target.layout != expected:
            report.derived(target.name, f"A and B exchanged and transposed, the same change{doubt}")
    return {target.name: target.layout != expected for target in experts}


def _is_new(config: Config) -> bool:
    try:
        return era(config.version) is Era.NEW
    except UnsupportedError:
        return False


def given_names(adapter: Adapter, original: Config | None) -> tuple[frozenset[str], frozenset[str]]:
    """What the original config says of names that do not tell by themselves.

    Returns:
        Names of targets that are parameters, and names of targets that are saved without being asked for.
    """
    if original is None:
        return frozenset(), frozenset()
    names = {target.name for target in adapter}
    parameters = set()
    for name in names:
        module, _, leaf = name.rpartition(".")
        if leaf in original.parameters_of(module) and not original.targets_module(module):
            parameters.add(name)
    return frozenset(parameters), frozenset(name for name in names if original.saves(name))


def compose(adapter: Adapter, plan: Plan, original: Config | None, report: Report) -> dict[str, Json]:
    """The JSON of ``adapter_config.json``; rearranges trained rows into the order that the config states.

    Raises:
        UnsupportedError: no alpha gives a target's scale to the last bit.
    """
    config = {**(_FRESH if original is None else original.raw)}
    config["base_model_name_or_path"] = adapter.base.name
    config["revision"] = adapter.base.revision
    config |= _scaling(plan, original)
    config |= _names(plan, original)
    config |= _saved(plan, original)
    config |= _tokens(plan, original)
    config["use_dora"], config["lora_bias"] = plan.dora, plan.lora_bias
    if adapter.gate != (original.gate if original else ()):
        config["alora_invocation_tokens"] = list[Json](adapter.gate) or None
    config["fan_in_fan_out"] = _flag(config, plan, original, report)
    if any(target.layout[:1] == ("expert",) for target in adapter) and (original is None or not _is_new(original)):
        config["peft_version"] = WRITTEN_VERSION
    return config


def _scaling(plan: Plan, original: Config | None) -> dict[str, Json]:
    if original is not None and _agrees(original.scaling, plan):
        return {}
    scaling = synthesize(plan.scales)
    if not isinstance(scaling, Scaling):
        reason = "no lora_alpha in float64 gives exactly this scale at this rank"
        refuse("PEFT cannot hold this adapter", [unsupported(name, reason) for name in scaling])
        raise AssertionError  # synthesize names at least one target when it fails
    return {
        "r": scaling.r,
        "lora_alpha": scaling.alpha,
        "use_rslora": scaling.rslora,
        "rank_pattern": dict(scaling.rank_pattern),
        "alpha_pattern": dict(scaling.alpha_pattern),
        "init_lora_weights": True,
    }


def _agrees(scaling: Scaling, plan: Plan) -> bool:
    try:
        compiled: CompiledScaling = scaling.compiled()
    except PatternError:
        return False
    return all((compiled.rank(name), compiled.scale(name)) == wanted for name, wanted in plan.scales.items())


def _names(plan: Plan, original: Config | None) -> dict[str, Json]:
    if original is not None:
        stated = {module: original.parameters_of(module) for module in plan.parameters}
        if (
            all(original.targets_module(module) is not False for module in plan.modules)
            and not any(original.targets_module(module) for module in plan.parameters)
            and all(set(stated[module]) == set(names) for module, names in plan.parameters.items())
            and not any(original.parameters_of(module) for module in plan.modules)
        ):
            return {}
    parameters = [f"{module}.{name}" for module, names in plan.parameters.items() for name in names]
    changed: dict[str, Json] = {
        "target_modules": list[Json](sorted(plan.modules)),
        "target_parameters": list[Json](sorted(parameters)) or None,
    }
    if original is not None:
        changed |= {"exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    return changed


def _saved(plan: Plan, original: Config | None) -> dict[str, Json]:
    bias = original.bias if original else "none"
    changed: dict[str, Json] = {"bias": max(bias, plan.biases, key=("none", "lora_only", "all").index)}
    if plan.saved:
        changed["modules_to_save"] = list[Json](sorted({*plan.saved, *(original.modules_to_save if original else ())}))
    return changed


def _tokens(plan: Plan, original: Config | None) -> dict[str, Json]:
    orders = {}
    for module, target in plan.tokens.items():
        rows = rows_of(module, original) if original else None
        if rows is None or tuple(sorted(rows)) != target.rows:
            stated = {name: list[Json](token.rows) for name, token in plan.tokens.items()}
            return {"trainable_token_indices": stated}  # type: ignore[dict-item]
        orders[module] = rows
    for module, rows in orders.items():
        if rows != plan.tokens[module].rows:
            key = f"{PREFIX}{module}.token_adapter.trainable_tokens_delta"
            position = {row: index for index, row in enumerate(plan.tokens[module].rows)}
            plan.tensors[key] = rearranged(plan.tensors[key], [position[row] for row in rows])
    return {} if plan.tokens else {"trainable_token_indices": None}


def _flag(config: Mapping[str, Json], plan: Plan, original: Config | None, report: Report) -> bool:
    """``fan_in_fan_out``: the value from which a reader of the files alone finds the same layouts."""
    usual = IN_OUT in plan.layouts.values() and not plan.parameters  # PEFT refuses the flag beside parameters
    stated = original.fan_in_fan_out if original else usual
    shapes = {module: _out_in(plan.tensors, module) for module in plan.layouts}
    for flag in (stated, usual, not usual):
        try:
            if linear_layouts(shapes, flag=flag, of=family(config)) == plan.layouts:
                return flag
        except UnsupportedError:
            continue
    report.derived("fan_in_fan_out", "one flag for modules of both layouts; PEFT asks each module itself")
    return usual


def _out_in(tensors: Mapping[str, Tensor], module: str) -> tuple[int, int]:
    a, b = tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"]
    return b.shape[0], a.shape[1]
