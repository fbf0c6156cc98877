"""From a module with low-rank tensors to the base tensors that it changes.

A module's own weight, the two projections of a MultiheadAttention, or the parameters that
``target_parameters`` names: which of them it is stands in the config, not in the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from lora_registry.adapter import Tensor
from lora_registry.findings import Finding
from loreg_converters._peft.attention import OUT_PROJ_TIMES, out_proj_problem
from loreg_converters._peft.config import Config
from loreg_converters._peft.experts import GATED, gated_labels
from loreg_converters._peft.keys import Part
from loreg_converters._peft.problems import broken, unsupported
from loreg_converters._peft.sites import Site


@dataclass(frozen=True, slots=True)
class Place:
    """One base tensor and the low-rank tensors on it.

    Attributes:
        name: name of the base tensor.
        bias: name of the bias beside it.
        pattern_name: what PEFT matches patterns against.
        parts: the tensors.
        parameter: whether ``target_parameters`` names it.
        attention: whether it belongs to a MultiheadAttention.
        times: how often PEFT adds the change.
        labels: for experts: whether in and out are labeled as the layer computes, where that is known.
    """

    name: str
    bias: str
    pattern_name: str
    parts: Mapping[Part, Tensor]
    parameter: bool = False
    attention: bool = False
    times: int = 1
    labels: bool | None = None


class Placed(NamedTuple):
    """Places, and what is wrong with the rest."""

    places: list[Place]
    findings: list[Finding]


def find_places(sites: Mapping[str, Site], config: Config) -> Placed:
    """Name the base tensors of every site."""
    attentions = {site.inside for site in sites.values() if site.inside is not None}
    placed = Placed([], [])
    for site in sites.values():
        if site.inside is not None:
            _attention_output(site, sites, config, placed)
        elif site.module in attentions:
            weight, bias = f"{site.module}.in_proj_weight", f"{site.module}.in_proj_bias"
            _module(site, config, placed, weight, bias, attention=True)
        elif parameters := _parameters(site, config):
            _place_parameters(site, parameters, config, placed)
        else:
            _module(site, config, placed, f"{site.module}.weight", f"{site.module}.bias")
    return placed


def _parameters(site: Site, config: Config) -> list[str]:
    """The parameters of the site's module that are targeted, the outermost first where that is known.

    A bare name such as ``down_proj`` names a parameter of any module that has one, which the keys do not tell.
    Where the config also names this very module, or parameters of it (``gate.weight``), and there are no more
    wrappers than that, the bare names are of other modules.
    """
    depth = len(site.levels)
    named = config.parameters_of(site.module, bare=False)
    if depth == 1 and not named and config.names_module(site.module):
        return []
    return named if named and len(named) == depth else config.parameters_of(site.module)


def _attention_output(site: Site, sites: Mapping[str, Site], config: Config, placed: Placed) -> None:
    inside = str(site.inside)
    if site.module != f"{inside}.out_proj" or inside not in sites or set(site.levels) != {0}:
        reason = "lies below a base_layer, but not as the out_proj of a MultiheadAttention"
        placed.findings.append(broken(site.module, reason))
        return
    name, bias = f"{site.module}.weight", f"{site.module}.bias"
    if problem := out_proj_problem(config.version):
        placed.findings.append(unsupported(name, problem))
    placed.places.append(Place(name, bias, inside, site.levels[0], attention=True, times=OUT_PROJ_TIMES))


def _module(site: Site, config: Config, placed: Placed, name: str, bias: str, *, attention: bool = False) -> None:
    if set(site.levels) != {0}:
        reason = f"{len(site.levels)} nested wrappers, but target_parameters names no parameter of it"
        placed.findings.append(broken(site.module, reason))
    elif config.targets_module(site.module) is False:
        reason = "neither target_modules nor target_parameters names it: PEFT would leave its tensors out in silence"
        placed.findings.append(broken(site.module, reason))
    else:
        placed.places.append(Place(name, bias, site.module, site.levels[0], attention=attention))


def _place_parameters(site: Site, parameters: list[str], config: Config, placed: Placed) -> None:
    if config.targets_module(site.module):
        placed.findings.append(broken(site.module, "both target_modules and target_parameters name it"))
        return
    depth = len(site.levels)
    if set(site.levels) != set(range(depth)) or depth != len(parameters):
        names = ", ".join(sorted(parameters))
        reason = f"{depth} nested wrappers for the {len(parameters)} parameters {names}"
        placed.findings.append(broken(site.module, reason))
        return
    labels: bool | None = None
    if depth > 1:
        # The first registered lies innermost. Only the pair of a gated layer can be told by names and shapes.
        if sorted(parameters) == sorted(GATED):
            outs = [_out_in(site.levels[level]) for level in (1, 0)]
            labels = gated_labels(outs[0], outs[1]) if all(min(out) for out in outs) else None
        if labels is None:
            names = ", ".join(sorted(parameters))
            reason = (
                f"the keys do not say which wrapper is which of {names}: PEFT nests them in the order in which the "
                "module registers them, and neither names nor shapes tell it here"
            )
            placed.findings.append(unsupported(site.module, reason))
            return
        parameters = list(reversed(GATED))
    for level, parameter in enumerate(parameters):
        name = f"{site.module}.{parameter}"
        placed.places.append(Place(name, "", name, site.levels[level], parameter=True, labels=labels))


def _out_in(parts: Mapping[Part, Tensor]) -> tuple[int, int]:
    a, b = parts.get(Part.A), parts.get(Part.B)
    return (b.shape[0], a.shape[1]) if a and b and len(a.shape) == len(b.shape) == 2 else (0, 0)
