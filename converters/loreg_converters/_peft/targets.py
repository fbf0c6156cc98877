"""From places to targets: kind, layout, shape and scale of every base tensor that a PEFT file changes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from lora_registry.adapter import Kind, Target, Tensor
from lora_registry.convert.report import Report
from lora_registry.errors import UnsupportedError
from lora_registry.findings import Finding
from loreg_converters._peft.config import Config
from loreg_converters._peft.experts import era, expert_layout, unpack
from loreg_converters._peft.family import Family, family
from loreg_converters._peft.keys import Part
from loreg_converters._peft.layouts import IN_OUT, OUT_IN, linear_layouts
from loreg_converters._peft.places import Place
from loreg_converters._peft.problems import broken, unsupported
from loreg_converters._peft.scaling import CompiledScaling

_EMBEDDING = frozenset({Part.EMBEDDING_A, Part.EMBEDDING_B})
_FACTORS = frozenset({Part.A, Part.B})


class TargetBuilder:
    """Makes targets, collects findings and writes what was not a plain copy into a report."""

    def __init__(self, config: Config, scaling: CompiledScaling, values: Mapping[str, Tensor], report: Report) -> None:
        self._config = config
        self._scaling = scaling
        self._values = values
        self._report = report
        self._family: Family = family(config.raw)
        self.taken: set[str] = set()
        self.targets: list[Target] = []
        self.findings: list[Finding] = []

    def build(self, places: list[Place]) -> None:
        """Make the targets of all ``places``."""
        linear: list[tuple[Place, Tensor, Tensor]] = []
        experts: list[tuple[Place, Tensor, Tensor]] = []
        for place in places:
            factors = self._factors(place)
            if factors is None:
                continue
            a, b = factors
            if Part.EMBEDDING_A in place.parts:
                self._embedding(place, a, b)
            elif len(a.shape) > 2:
                self._conv(place, a, b)
            elif place.parameter and a.shape[0] != self._scaling.rank(place.pattern_name):
                experts.append((place, a, b))
            else:
                linear.append((place, a, b))
        self._linears(linear)
        self._experts(experts)

    def _problem(self, place: Place, message: str) -> None:
        self.findings.append(broken(place.name, message))

    def _factors(self, place: Place) -> tuple[Tensor, Tensor] | None:
        """A and B, once every tensor of the place is known to belong there."""
        parts = place.parts
        pair = (Part.EMBEDDING_A, Part.EMBEDDING_B) if parts.keys() & _EMBEDDING else (Part.A, Part.B)
        missing = [part.value for part in pair if part not in parts]
        if missing or (parts.keys() & _EMBEDDING and parts.keys() & _FACTORS):
            self._problem(place, f"has no {' and no '.join(missing)}" if missing else "has factors of two kinds")
            return None
        for flag, part, field in (
            (self._config.dora, Part.MAGNITUDE, "use_dora"),
            (self._config.lora_bias, Part.B_BIAS, "lora_bias"),
        ):
            if flag != (part in parts):
                has, set_ = ("no", "is") if flag else ("a", "is not")
                self._problem(place, f"has {has} {part.value}, though {field} {set_} set")
        a, b = self._diagonal(place, parts[pair[0]], parts[pair[1]])
        if len(a.shape) != len(b.shape) or not 2 <= len(a.shape) <= 5:
            self._problem(place, f"factors of shapes {list(a.shape)} and {list(b.shape)}")
            return None
        return a, b

    def _diagonal(self, place: Place, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """The factors of a linear module, that of the two which holds blocks with the zeros around them."""
        blocks = self._config.blocks
        if blocks is None or place.parameter or len(a.shape) != 2 or Part.EMBEDDING_A in place.parts:
            return a, b
        try:
            which = blocks.of(place.pattern_name)
        except ValueError as error:
            self._problem(place, str(error))
            return a, b
        stacked = {"A": a, "B": b, None: None}[which]
        if stacked is None:
            return a, b
        if not blocks.fit(stacked):
            self._problem(place, f"{which} of shape {list(stacked.shape)} does not hold {blocks.count} blocks")
            return a, b
        self._report.derived(place.name, f"{which} with the zeros around its {blocks.count} blocks (use_bdlora)")
        whole = blocks.diagonal(stacked)
        return (whole, b) if which == "A" else (a, whole)

    def _rank_holds(self, place: Place, rank: int) -> bool:
        stated = self._scaling.rank(place.pattern_name)
        if rank != stated:
            self._problem(place, f"rank {rank} in the tensors, {stated} in the config: the scale would be wrong")
        return rank == stated

    def _finish(self, place: Place, target: Target) -> None:
        """Add the scale, the magnitude, a base weight that stands in, and the bias of B."""
        scale = self._scaling.scale(place.pattern_name)
        if not math.isfinite(scale):
            self._problem(place, f"a scale of {scale}")
            return
        if self._config.gate and (place.parameter or place.attention or target.kind is not Kind.LINEAR):
            self.findings.append(unsupported(place.name, "PEFT's activated LoRA takes linear layers only"))
        if place.times != 1:
            self._report.derived(
                place.name, f"{place.times} times the scale: PEFT adds the change of out_proj so often"
            )
        tensors = dict(target.tensors)
        assert target.shape is not None
        out = target.shape[target.layout.index("out")]
        if Part.MAGNITUDE in place.parts:
            tensors["magnitude"] = self._magnitude(place, place.parts[Part.MAGNITUDE], out)
        if target.name in self._values:
            self.taken.add(target.name)
            tensors["value"] = self._values[target.name]
            self._report.kept(target.name, "the saved base weight stands in for the base model's")
            if tensors["value"].shape != target.shape:
                self._problem(place, f"base weight {list(tensors['value'].shape)} on a change of {list(target.shape)}")
        self.targets.append(
            Target(
                name=target.name, kind=target.kind, layout=target.layout, shape=target.shape, tensors=tensors,
                scale=place.times * scale, groups=target.groups,
            )
        )  # fmt: skip
        if Part.B_BIAS in place.parts and place.attention and place.times == 1:
            self.findings.append(unsupported(place.bias, "PEFT saves a bias of B for in_proj and never adds it"))
        elif Part.B_BIAS in place.parts:
            self._bias(place, place.parts[Part.B_BIAS], scale, out)

    def _magnitude(self, place: Place, tensor: Tensor, out: int) -> Tensor:
        if math.prod(tensor.shape) != out or out not in tensor.shape:
            self._problem(place, f"magnitude of shape {list(tensor.shape)} for {out} outputs")
        if tensor.shape == (out,):
            return tensor
        self._report.kept(place.name, f"magnitude {list(tensor.shape)} as {[math.prod(tensor.shape)]}")
        return tensor.with_shape(math.prod(tensor.shape))

    def _bias(self, place: Place, delta: Tensor, scale: float, out: int) -> None:
        if delta.shape != (out,) or not place.bias:
            self._problem(place, f"a bias of B of shape {list(delta.shape)} for {out} outputs")
            return
        tensors = {"delta": delta}
        target = Target(name=place.bias, kind=Kind.BIAS, layout=("out",), shape=(out,), tensors=tensors, scale=scale)
        self.targets.append(target)

    def _embedding(self, place: Place, a: Tensor, b: Tensor) -> None:
        if len(a.shape) != 2 or a.shape[0] != b.shape[1]:
            self._problem(place, f"embedding factors of shapes {list(a.shape)} and {list(b.shape)}")
        elif self._rank_holds(place, a.shape[0]):
            shape = (a.shape[1], b.shape[0])
            self._finish(place, _target(place, Kind.EMBEDDING, IN_OUT, shape, a, b))

    def _conv(self, place: Place, a: Tensor, b: Tensor) -> None:
        (rank, inner, *kernel), (out, share, *ones) = a.shape, b.shape
        if place.parameter or any(length != 1 for length in ones) or rank % share or out % (rank // share):
            self._problem(place, f"convolution factors of shapes {list(a.shape)} and {list(b.shape)}")
            return
        groups = rank // share
        if inner % groups:
            self._problem(place, f"{inner} inputs in {groups} groups")
        elif self._rank_holds(place, rank):
            layout = ("out", "in", *("k" for _ in kernel))
            self._finish(place, _target(place, Kind.CONV, layout, (out, inner // groups, *kernel), a, b, groups))

    def _linears(self, linear: list[tuple[Place, Tensor, Tensor]]) -> None:
        sound = [
            (place, a, b) for place, a, b in linear if self._agree(place, a, b) and self._rank_holds(place, a.shape[0])
        ]
        modules = {
            place.pattern_name: (b.shape[0], a.shape[1])
            for place, a, b in sound
            if not place.parameter and not place.attention
        }
        try:
            layouts = linear_layouts(modules, flag=self._config.fan_in_fan_out, of=self._family)
        except UnsupportedError as error:
            self.findings.append(unsupported("fan_in_fan_out", str(error)))
            return
        if len(set(layouts.values())) > 1:
            self._report.derived(
                "layouts", "modules with names of transformers' Conv1D are [in, out], the others [out, in]"
            )
        for place, a, b in sound:
            layout = OUT_IN if place.parameter or place.attention else layouts[place.pattern_name]
            out_in = (b.shape[0], a.shape[1])
            shape = out_in if layout == OUT_IN else out_in[::-1]
            if place.parameter:
                self._report.derived(
                    place.name,
                    f"a parameter of {list(shape)}, without an expert axis: A has the rows of one rank",
                )
            self._finish(place, _target(place, Kind.LINEAR, layout, shape, a, b))

    def _agree(self, place: Place, a: Tensor, b: Tensor) -> bool:
        if a.shape[0] == b.shape[1]:
            return True
        self._problem(place, f"factors of shapes {list(a.shape)} and {list(b.shape)} do not share a rank")
        return False

    def _experts(self, experts: list[tuple[Place, Tensor, Tensor]]) -> None:
        checkable = {place.name.rpartition(".")[0] for place, a, b in experts if a.shape[1] != b.shape[0]}
        for place, a, b in experts:
            rank = self._scaling.rank(place.pattern_name)
            if not self._agree(place, a, b):
                continue
            if a.shape[0] % rank:
                self._problem(place, f"A has {a.shape[0]} rows, which is no multiple of the rank {rank} in the config")
                continue
            self._expert(place, a, b, checkable=place.name.rpartition(".")[0] in checkable)

    def _expert(self, place: Place, a: Tensor, b: Tensor, *, checkable: bool) -> None:
        try:
            when = era(self._config.version)
        except UnsupportedError as error:
            self.findings.append(unsupported(place.name, str(error)))
            return
        of = self._family
        layout, certain = expert_layout(
            when, transposed=of.transposed_experts, in_out=of.in_out_experts, labels=place.labels
        )
        if self._config.version is None:
            certain = False  # other writers leave the version out too
        if not certain and not checkable:
            message = (
                f"[E, {b.shape[0]}, {a.shape[1]}] is square, and neither shapes nor peft_version "
                f"({self._config.version or 'missing'}) tell whether the base has [E, out, in] or [E, in, out]"
            )
            self.findings.append(unsupported(place.name, message))
            return
        rank = self._scaling.rank(place.pattern_name)
        experts = a.shape[0] // rank
        unpacked = unpack(a, b, experts)
        sizes = {"expert": experts, "out": b.shape[0], "in": a.shape[1]}
        written_by = f"PEFT {self._config.version or 'before 0.18'} (layout of {when.value})"
        doubt = "" if certain else "; the base's shape will show it if this is wrong"
        self._report.derived(place.name, f"stored [{', '.join(layout)}] as {written_by} reads it{doubt}")
        shape = tuple(sizes[axis] for axis in layout)
        self._finish(place, _target(place, Kind.EXPERTS, layout, shape, *unpacked))


def _target(
    place: Place, kind: Kind, layout: tuple[str, ...], shape: tuple[int, ...], a: Tensor, b: Tensor, groups: int = 1
) -> Target:
    return Target(name=place.name, kind=kind, layout=layout, shape=shape, tensors={"A": a, "B": b}, groups=groups)
