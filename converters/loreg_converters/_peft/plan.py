"""What a PEFT folder must hold to say what an adapter says: keys, ranks, scales and lists of names.

The plan knows nothing of the config that the adapter may have come with; that comes in ``compose``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_registry.adapter import LOW_RANK, Adapter, Kind, Layout, Target, Tensor
from lora_registry.findings import Finding
from loreg_converters._peft.attention import OUT_PROJ_TIMES
from loreg_converters._peft.experts import GATED, exchanged, pack
from loreg_converters._peft.keys import PREFIX
from loreg_converters._peft.layouts import OUT_IN
from loreg_converters._peft.problems import refuse, unsupported

_STATE = frozenset({"weight", "bias", "running_mean", "running_var", "num_batches_tracked"})
"""What a module of torch calls its tensors; anything else may be a bare parameter, which PEFT cannot save."""


@dataclass(slots=True)
class Plan:
    """The content of a PEFT folder.

    Attributes:
        tensors: key to tensor.
        scales: module, or parameter, to (rank, scale).
        modules: modules with LoRA.
        layouts: module of a plain linear weight to its layout.
        parameters: module to the parameters of it that are targeted, outermost first.
        saved: modules that are saved whole.
        biases: ``none``, ``lora_only`` or ``all``.
        tokens: embedding to its trained rows.
        dora: whether the modules have magnitudes.
        lora_bias: whether the modules have a bias of B.
        exchanged: experts whose factors take each other's place.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    scales: dict[str, tuple[int, float]] = field(default_factory=dict)
    modules: set[str] = field(default_factory=set)
    layouts: dict[str, Layout] = field(default_factory=dict)
    parameters: dict[str, tuple[str, ...]] = field(default_factory=dict)
    saved: set[str] = field(default_factory=set)
    biases: str = "none"
    tokens: dict[str, Target] = field(default_factory=dict)
    dora: bool = False
    lora_bias: bool = False
    exchanged: set[str] = field(default_factory=set)


def make_plan(adapter: Adapter, *, parameters: frozenset[str], saved: frozenset[str], swap: Mapping[str, bool]) -> Plan:
    """Lay an adapter out as PEFT would.

    Args:
        adapter: what is to be written.
        parameters: names of linear targets that are parameters, not weights of modules.
        saved: names of full targets that the original config saves, whatever they are called.
        swap: experts target to whether its factors take each other's place.

    Raises:
        UnsupportedError: PEFT cannot hold a target; names every one, with the reason.
    """
    planner = _Planner(adapter, parameters, saved, swap)
    planner.run()
    refuse("PEFT cannot hold this adapter", planner.findings)
    return planner.plan


class _Planner:
    def __init__(
        self, adapter: Adapter, parameters: frozenset[str], saved: frozenset[str], swap: Mapping[str, bool]
    ) -> None:
        self._targets = {target.name: target for target in adapter}
        self._given_parameters = parameters
        self._given_saved = saved
        self._swap = swap
        self._nested: dict[str, list[Target]] = defaultdict(list)
        self._with_magnitude: set[str] = set()
        self._with_bias: set[str] = set()
        self._owners: dict[str, tuple[str, str]] = {}
        self.plan = Plan()
        self.findings: list[Finding] = []

    def run(self) -> None:
        for target in self._targets.values():
            if target.kind in LOW_RANK:
                self._low_rank(target)
        self._nest()
        self._owners = self._find_owners()
        for target in self._targets.values():
            match target.kind:
                case Kind.BIAS:
                    self._bias(target)
                case Kind.FULL:
                    self._full(target)
                case Kind.TOKENS:
                    self._tokens(target)
        self._uniform()

    def _refuse(self, target: Target | str, reason: str) -> None:
        self.findings.append(unsupported(target if isinstance(target, str) else target.name, reason))

    def _low_rank(self, target: Target) -> None:
        module, _, leaf = target.name.rpartition(".")
        if not module:
            self._refuse(target, "has no module around it that PEFT could wrap")
        elif target.kind is Kind.EXPERTS or (target.kind is Kind.LINEAR and target.name in self._given_parameters):
            self._nested[module].append(target)
        elif leaf == "weight":
            self._module(target, module, self._attention(module) or module)
        elif leaf == "in_proj_weight" and self._attention(f"{module}.out_proj"):
            self._module(target, module, module)
        elif target.kind is Kind.LINEAR and target.layout == OUT_IN:
            self._nested[module].append(target)
        else:
            self._refuse(target, f"a {target.kind} target whose name does not end in .weight is no weight of a module")

    def _attention(self, module: str) -> str | None:
        """The MultiheadAttention of which ``module`` is the out_proj, when both of its projections are targeted."""
        parent, _, leaf = module.rpartition(".")
        sibling = self._targets.get(f"{parent}.in_proj_weight")
        both = leaf == "out_proj" and f"{module}.weight" in self._targets
        return parent if both and sibling is not None and sibling.kind is Kind.LINEAR else None

    def _module(self, target: Target, module: str, owner: str) -> None:
        """Factors of a module's own weight; ``owner`` is the MultiheadAttention around it, or the module."""
        attention = owner != module or not target.name.endswith(".weight")
        path = f"{owner}.base_layer.out_proj" if owner != module else module
        if target.kind is Kind.EMBEDDING:
            tail_a, tail_b = "lora_embedding_A", "lora_embedding_B"
        else:
            tail_a, tail_b = "lora_A.weight", "lora_B.weight"
        self._put(f"{path}.{tail_a}", target.tensors["A"])
        self._put(f"{path}.{tail_b}", target.tensors["B"])
        if attention and (target.layout != OUT_IN or target.tensors.keys() - {"A", "B"}):
            self._refuse(target, "PEFT's MultiheadAttention has neither magnitude nor saved weight nor another layout")
        if "magnitude" in target.tensors:
            magnitude = target.tensors["magnitude"]
            if target.kind is Kind.CONV:
                magnitude = magnitude.with_shape(1, *magnitude.shape, *(1 for _ in target.layout[2:]))
            self._put(f"{path}.lora_magnitude_vector", magnitude)
            self._with_magnitude.add(path)
        if "value" in target.tensors:
            self._put(f"{path}.base_layer.weight", target.tensors["value"])
        if target.kind is Kind.LINEAR and not attention:
            self.plan.layouts[module] = target.layout
        self.plan.modules.add(owner)
        self._scale(owner, target, times=OUT_PROJ_TIMES if owner != module else 1)

    def _scale(self, name: str, target: Target, *, times: int = 1) -> None:
        assert target.rank is not None
        wanted = (target.rank, target.scale / times)
        if self.plan.scales.setdefault(name, wanted) != wanted:
            twice = ", and adds the change of out_proj twice" if f"{name}.in_proj_weight" in self._targets else ""
            self._refuse(target, f"PEFT has one rank and scale for all of {name}{twice}")

    def _nest(self) -> None:
        """Parameters of one module, as wrappers around each other."""
        for module, targets in self._nested.items():
            names = {target.name.rpartition(".")[2]: target for target in targets}
            if module in self.plan.modules:
                self._refuse(module, "PEFT cannot target a module's weight and its parameters at once")
            order = [*names] if len(names) == 1 else [name for name in reversed(GATED) if name in names]
            if len(order) != len(names):
                listed = ", ".join(sorted(names))
                self._refuse(module, f"PEFT nests {listed} in the order of registration, which is not known")
                continue
            self.plan.parameters[module] = tuple(order)
            for level, name in enumerate(order):
                self._parameter(names[name], module + ".base_layer" * level)

    def _parameter(self, target: Target, path: str) -> None:
        if target.tensors.keys() - {"A", "B"}:
            self._refuse(target, "PEFT keeps neither a magnitude nor a saved weight for a parameter")
        a, b = target.tensors["A"], target.tensors["B"]
        if target.kind is Kind.EXPERTS:
            if self._swap.get(target.name):
                a, b = exchanged(a, b)
                self.plan.exchanged.add(target.name)
            a, b = pack(a, b)
        elif target.layout != OUT_IN:
            self._refuse(target, "PEFT reads a two-dimensional parameter as [out, in]")
        self._put(f"{path}.lora_A.weight", a)
        self._put(f"{path}.lora_B.weight", b)
        self._scale(target.name, target)

    def _bias(self, target: Target) -> None:
        if target.name not in self._owners:
            self._refuse(target, "a bias delta without low-rank factors on the same module")
            return
        if target.name.endswith(".in_proj_bias"):
            self._refuse(target, "PEFT never adds a bias of B to that of in_proj")
            return
        owner, path = self._owners[target.name]
        if self.plan.scales[owner][1] != target.scale:
            self._refuse(target, f"PEFT scales a bias of B by the scale of {owner}, which is another")
        self._put(f"{path}.lora_B.bias", target.tensors["delta"])
        self._with_bias.add(path)

    def _find_owners(self) -> dict[str, tuple[str, str]]:
        """Name of a bias to (module, path of its factors in the keys), for every module with LoRA."""
        found = {}
        for module in sorted(self.plan.modules):
            if f"{module}.in_proj_weight" in self._targets:
                found[f"{module}.in_proj_bias"] = (module, module)
                found[f"{module}.out_proj.bias"] = (module, f"{module}.base_layer.out_proj")
            else:
                found[f"{module}.bias"] = (module, module)
        return found

    def _full(self, target: Target) -> None:
        module, _, leaf = target.name.rpartition(".")
        value = target.tensors["value"]
        if target.name in self._owners:
            owner, path = self._owners[target.name]
            inner = "in_proj_bias" if target.name == f"{owner}.in_proj_bias" else "bias"
            self._put(f"{path}.base_layer.{inner}", value)
            self.plan.biases = max(self.plan.biases, "lora_only", key=("none", "lora_only", "all").index)
            return
        if target.name not in self._given_saved:
            if leaf == "bias" and f"{module}.weight" not in self._targets:
                self.plan.biases = "all"
            elif not module or leaf not in _STATE or (leaf not in ("weight", "bias") and not self._has_weight(module)):
                self._refuse(target, "PEFT saves whole modules, and this is a bare parameter")
            else:
                self.plan.saved.add(module)
        self._put(target.name, value)

    def _has_weight(self, module: str) -> bool:
        return f"{module}.weight" in self._targets

    def _tokens(self, target: Target) -> None:
        module, _, leaf = target.name.rpartition(".")
        if leaf != "weight" or not module:
            self._refuse(target, "trained rows of something that is no embedding's weight")
        if target.length is not None:
            self._refuse(target, f"a table that grows to {target.length} rows; PEFT saves a resized embedding whole")
        self.plan.tokens[module] = target
        self._put(f"{module}.token_adapter.trainable_tokens_delta", target.tensors["value"])

    def _uniform(self) -> None:
        """PEFT has one switch for all modules, where an adapter can differ from target to target."""
        paths = {path for _, path in self._owners.values()}
        for what, having in (("magnitude", self._with_magnitude), ("bias of B", self._with_bias)):
            for path in sorted(paths - having if having else ()):
                self._refuse(
                    path.replace(".base_layer", ""), f"has no {what} and others have: PEFT has one switch for all"
                )
            if having and self.plan.parameters:
                self._refuse(min(self.plan.parameters), f"PEFT targets no parameters beside modules with a {what}")
        if self._with_magnitude and self._with_bias:
            self._refuse(min(self._with_bias), "PEFT has no bias of B beside magnitudes")
        if not self.plan.scales:
            self._refuse("targets", "PEFT's LoRA needs at least one target with factors")
        self.plan.dora, self.plan.lora_bias = bool(self._with_magnitude), bool(self._with_bias)

    def _put(self, path: str, tensor: Tensor) -> None:
        self.plan.tensors[PREFIX + path] = tensor
