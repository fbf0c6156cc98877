"""LoHa and LoKr of PEFT: the tensors of a module as the factors of its target.

PEFT wraps nn.Linear and convolutions only, so that matrices are (out, in). Of a convolution it flattens the kernel
into the inputs of a product, and the file does not say so: such a change is read as the matrix that it is, which
does not fit a base with a kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lora_registry.adapter import Kind, Layout, Target, Tensor
from lora_registry.findings import Finding
from loreg_converters._peft.config import Config
from loreg_converters._peft.keys import Part, parse_composed, parse_key, without_base_layers
from loreg_converters._peft.problems import broken, unsupported
from loreg_converters._peft.scaling import CompiledScaling

_LAYOUTS: Mapping[int, Layout] = {2: ("out", "in"), 4: ("out", "in", "k", "k")}
_ROLES = {
    "hada_w1_a": "B1", "hada_w1_b": "A1", "hada_w2_a": "B2", "hada_w2_b": "A2",
    "lokr_w1": "C1", "lokr_w1_a": "B1", "lokr_w1_b": "A1", "lokr_w2": "C2", "lokr_w2_a": "B2", "lokr_w2_b": "A2",
}  # fmt: skip
_PREFIX = {Kind.LOHA: "hada_", Kind.LOKR: "lokr_"}
_SIDES = {
    Kind.LOHA: ({"A1", "B1", "A2", "B2"},),
    Kind.LOKR: tuple({*one, *two} for one in (("C1",), ("A1", "B1")) for two in (("C2",), ("A2", "B2"))),
}


@dataclass(slots=True)
class Composed:
    """What a file holds.

    Attributes:
        targets: the changes of the modules, and the modules that are saved whole.
        noise: what was stripped from keys that PEFT's own files do not have.
        findings: what is wrong.
    """

    targets: list[Target] = field(default_factory=list)
    noise: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)


def composed_targets(tensors: Mapping[str, Tensor], config: Config, scaling: CompiledScaling) -> Composed:
    """The targets of a LoHa or LoKr file."""
    kind = Kind(str(config.raw["peft_type"]).lower())
    result = Composed()
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for text, tensor in sorted(tensors.items()):
        key = parse_composed(text)
        if key is None:
            _saved(result, text, tensor, config)
            continue
        result.noise.update(key.noise)
        parts = modules[key.module]
        if key.role in parts:
            result.findings.append(broken(text, "is there twice, under two spellings"))
        parts[key.role] = tensor
    for module, parts in modules.items():
        problem = _problem(module, kind, parts, config, scaling)
        if problem is not None:
            result.findings.append(problem)
        else:
            named = {_ROLES[role]: tensor for role, tensor in parts.items()}
            result.targets.append(_target(module, kind, named, scaling.scale(module)))
    return result


def _saved(result: Composed, text: str, tensor: Tensor, config: Config) -> None:
    key = parse_key(text)
    path = without_base_layers(key.module) if key is not None and key.part is Part.PLAIN else None
    if path is None or not config.saves(path):
        result.findings.append(broken(text, "no rule knows this key: neither the method's own, nor modules_to_save"))
    elif path in {target.name for target in result.targets}:
        result.findings.append(broken(text, "is there twice, under two spellings"))
    else:
        value = {"value": tensor}
        result.targets.append(Target(name=path, kind=Kind.FULL, layout=(), shape=tensor.shape, tensors=value))


def _problem(
    module: str, kind: Kind, parts: Mapping[str, Tensor], config: Config, scaling: CompiledScaling
) -> Finding | None:
    """The first thing that keeps the tensors of a module from being a target."""
    cores = sorted(role for role in parts if "_t" in role)
    if cores:
        return unsupported(module, f"{cores[0]}: a Tucker core (use_effective_conv2d) is no product of two factors")
    shapes = {_ROLES[role]: tensor.shape for role, tensor in parts.items()}
    own = all(role.startswith(_PREFIX[kind]) for role in parts)
    if not own or set(shapes) not in _SIDES[kind]:
        return broken(module, f"{', '.join(sorted(parts))} are not the tensors of {kind}")
    if config.targets_module(module) is False:
        return broken(module, "target_modules does not name it: PEFT would leave its tensors out in silence")
    axes = {role: len(shape) for role, shape in shapes.items()}
    if axes.get("C2") == 3:
        return unsupported(module, "lokr_w2 of a one-dimensional convolution: PEFT mixes its kernel with the inputs")
    sound = all(count == 2 or (role, count) == ("C2", 4) for role, count in axes.items())
    if not sound or any(0 in shape for shape in shapes.values()):
        return broken(module, f"tensors of shapes {sorted(map(list, shapes.values()))}")
    return _rank_problem(module, kind, shapes, scaling.rank(module))


def _rank_problem(module: str, kind: Kind, shapes: Mapping[str, tuple[int, ...]], rank: int) -> Finding | None:
    for number in "12":
        if f"A{number}" in shapes:
            found = {shapes[f"A{number}"][0], shapes[f"B{number}"][1]}
            if found != {rank}:
                ranks = ", ".join(map(str, sorted(found)))
                return broken(module, f"rank {ranks} in the tensors, {rank} in the config: the scale would be wrong")
    if kind is Kind.LOHA and (shapes["A1"] != shapes["A2"] or shapes["B1"] != shapes["B2"]):
        return broken(module, "the two products have different shapes")
    return None


def _target(module: str, kind: Kind, tensors: Mapping[str, Tensor], scale: float) -> Target:
    if kind is Kind.LOHA:
        shape: tuple[int, ...] = (tensors["B1"].shape[0], tensors["A1"].shape[1])
    else:
        (o1, i1), (o2, i2) = (_outputs_inputs(tensors, number) for number in "12")
        kernel = tensors["C2"].shape[2:] if "C2" in tensors else ()
        shape = (o1 * o2, i1 * i2, *kernel)
    return Target(
        name=f"{module}.weight", kind=kind, layout=_LAYOUTS[len(shape)], shape=shape, tensors=tensors, scale=scale
    )


def _outputs_inputs(tensors: Mapping[str, Tensor], number: str) -> tuple[int, int]:
    if f"C{number}" in tensors:
        return tensors[f"C{number}"].shape[0], tensors[f"C{number}"].shape[1]
    return tensors[f"B{number}"].shape[0], tensors[f"A{number}"].shape[1]


def kernels_unknown(targets: Iterable[Target]) -> bool:
    """Whether a target is a matrix of which the file does not say whether it is a flattened kernel."""
    return any(target.kind is not Kind.FULL and "k" not in target.layout for target in targets)
