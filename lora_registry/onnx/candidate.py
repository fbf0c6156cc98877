"""An initializer that may hold the tensor of a target, and what speaks for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from lora_registry.adapter import Target
from lora_registry.onnx.hit import Hit
from lora_registry.onnx.model import OnnxModel, shape_of
from lora_registry.onnx.refusal import DISAGREE, SHAPE, RefusalError
from lora_registry.onnx.sites import Site
from lora_registry.onnx.values import oriented, same_values, swap
from lora_registry.onnx.window import Window, windowed
from lora_registry.ops.arrays import Array


@dataclass(slots=True)
class Candidate:
    """An initializer that at least one rule claims for a target; filled in as the chain goes on.

    Attributes:
        value: the initializer.
        window: the part of it that is meant; None where it is all of it.
        rules: ids of the rules that claim it.
        told: what rules said about its orientation.
        only_extends: no rule claims it by itself; it counts only beside one with the same values.
        mine: the uses that belong to the target.
        transposed: its orientation, once decided.
    """

    value: ir.Value
    window: Window | None = None
    rules: set[str] = field(default_factory=set)
    told: set[bool] = field(default_factory=set)
    only_extends: bool = True
    mine: tuple[Site, ...] = ()
    transposed: bool = False

    @property
    def name(self) -> str:
        """Name of the initializer."""
        return str(self.value.name)

    def values(self, model: OnnxModel) -> Array:
        """Its elements in the orientation that was decided."""
        return oriented(self.held(model), self.transposed)

    def held(self, model: OnnxModel) -> Array:
        """Its elements as they are stored."""
        return windowed(model.elements(self.value), self.window)

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths as stored."""
        whole = shape_of(self.value)
        return whole if self.window is None else self.window.shape(whole)

    @property
    def place(self) -> str:
        """Initializer and part of it, as people read it."""
        return f"{self.name!r}{self.window or ''}"


def candidates_of(target: Target, hits: Iterable[Hit]) -> list[Candidate]:
    """The initializers that the naming rules claim for ``target``, if at least one is claimed by itself.

    Raises:
        RefusalError: those that rules claim by itself have shapes that the target cannot have.
    """
    candidates: dict[tuple[str, Window | None], Candidate] = {}
    misfits: list[Candidate] = []
    for hit in hits:
        claimed = Candidate(hit.value, hit.window)
        if not may_hold(target, claimed.shape):
            # An operator of the module may well read other things; a name is meant for this tensor.
            misfits += [claimed] if hit.rule != "node-scope" else []
            continue
        candidate = candidates.setdefault((claimed.name, hit.window), claimed)
        candidate.rules.add(hit.rule)
        candidate.only_extends &= hit.only_extends
        if hit.transposed is not None:
            candidate.told.add(hit.transposed)
    if any(not candidate.only_extends for candidate in candidates.values()):
        return list(candidates.values())
    if misfits:
        wanted = "rows" if target.shape is None else list(target.shape)
        raise RefusalError(SHAPE, f"{misfits[0].place} is {list(misfits[0].shape)}; the adapter changes {wanted}")
    return []


def may_hold(target: Target, shape: tuple[int, ...]) -> bool:
    """Whether what has this shape can be the target's tensor in some orientation."""
    if target.shape is None:
        rows = target.tensors["value"].shape
        return len(shape) == 2 and shape[1] == rows[1]
    return shape in (target.shape, swap(target.shape))


def agreeing(model: OnnxModel, acting: Iterable[Candidate]) -> list[Candidate]:
    """The candidates with the values that every rule that fired points at.

    Raises:
        RefusalError: there are none, or two sets of them.
    """
    acting = list(acting)
    groups: list[list[Candidate]] = []
    for candidate in acting:
        for group in groups:
            if same_values(group[0].values(model), candidate.values(model)):
                group.append(candidate)
                break
        else:
            groups.append([candidate])
    fired = _rules(acting)
    agreed = [group for group in groups if fired <= _rules(group)]
    if len(agreed) != 1:
        claims = ", ".join(f"{'/'.join(sorted(c.rules))} says {c.place}" for c in acting)
        raise RefusalError(DISAGREE, f"the rules do not agree: {claims}")
    return agreed[0]


def _rules(candidates: Iterable[Candidate]) -> set[str]:
    return set().union(*(candidate.rules for candidate in candidates if not candidate.only_extends))
