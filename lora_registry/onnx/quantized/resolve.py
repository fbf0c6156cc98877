"""Which quantized operator holds the tensor that a target changes.

The names are those of :mod:`~lora_registry.onnx.slots.quantized_seats`, and onnxruntime-genai's, whose packed
queries, keys and values are parts of one matrix. A checkpoint confirms them, or finds what has no name: rounded to
nearest, an element is at most half a step from the one that it was (most of them; the ends of a block may be cut
off). Codes that a calibration chose (GPTQ, AWQ) are farther away, which a name survives as long as both matrices
point the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lora_registry.adapter import Json, Kind, Target
from lora_registry.findings import Finding
from lora_registry.onnx.builder import quantized_parts
from lora_registry.onnx.evidence import VALUE_MATCH
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.names import Names
from lora_registry.onnx.quantized.weight import GraphWeight, weight_of
from lora_registry.onnx.refusal import AMBIGUOUS, NOT_FOUND, OTHER_VALUES, QUANTIZED, SHAPE, RefusalError
from lora_registry.onnx.sites import Axes
from lora_registry.onnx.slots.quantized_seats import QuantizedSeat, quantized_seats
from lora_registry.onnx.window import Window
from lora_registry.ops.arrays import Array
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.prefix import Prefix, uniform_prefix

NAME = "quantized-name"
"""Id of the rule that goes by names of quantized operators and their tensors."""

_WITHIN = 0.95  # of the elements, at most half a step away
_HALF = np.float32(0.502)  # a step, and what the type of the scales rounds away
_SAMPLED = 8  # outputs
_SAME_WAY = 0.8  # cosine below which two matrices are not one, however it was quantized


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A quantized operator that holds the tensor of a target.

    Attributes:
        target: the target.
        seat: the operator, and where a branch beside it goes.
        window: the outputs that are the target's; None where they all are.
        rules: ids of the rules that agree.
    """

    target: Target
    seat: QuantizedSeat
    window: Window | None
    rules: tuple[str, ...]

    @property
    def layout(self) -> Axes:
        """The order of the target's axes; of a whole value, which has none, that of the checkpoint."""
        if self.target.layout:
            return self.target.layout
        if self.seat.kind is Kind.EMBEDDING or self.seat.transposed is False:
            return ("in", "out")
        turned = self.seat.transposed is None and self.target.shape == (self.seat.width, self.height)
        return ("in", "out") if turned and self.height != self.seat.width else ("out", "in")

    @property
    def height(self) -> int:
        """Number of the target's outputs."""
        return self.seat.height if self.window is None else self.window.length

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis lengths of the tensor, as the target has them."""
        return (self.height, self.seat.width) if self.layout == ("out", "in") else (self.seat.width, self.height)

    def evidence(self) -> dict[str, Json]:
        """What people and receipts are told."""
        node = self.seat.seat.operator
        said: dict[str, Json] = {"name": self.seat.codes.name, "sites": [{"node": node.name, "operator": node.op_type}]}
        if self.window is not None:
            said["slice"] = self.window.to_json()
        return {"rules": list(self.rules), "initializers": [said]}


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    """A name's: this operator, or this part of its outputs."""

    seat: QuantizedSeat
    window: Window | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Sample:
    """Some outputs of a quantized matrix: their numbers, and what they hold, float32 (outputs, in)."""

    outputs: Array
    values: Array
    steps: Array


def attempt_quantized(
    model: OnnxModel, targets: Sequence[Target], refused: Mapping[str, Finding], base: BaseModel | None
) -> tuple[tuple[Held, ...], tuple[Finding, ...]]:
    """Find the quantized operators of the targets that no float initializer holds.

    Args:
        model: the graph.
        targets: those that were not resolved.
        refused: why not, by target name: kept where no quantized operator has them either.
        base: the checkpoint, if at hand.

    Returns:
        Those that were found, and a finding for each other.

    Raises:
        InconclusiveError: names fit under several prefixes.
    """
    finder = _Finder(model, targets, base)
    found: list[Held] = []
    findings: list[Finding] = []
    for target in targets:
        before = refused[target.name]
        if before.rule not in (QUANTIZED, NOT_FOUND):
            findings.append(before)
            continue
        try:
            found.append(_alone(finder.find(target, before), found))
        except RefusalError as refusal:
            findings.append(Finding(refusal.rule, target.name, str(refusal)))
    return tuple(found), tuple(findings)


def _alone(held: Held, others: Iterable[Held]) -> Held:
    """``held``, if no other target changes the same outputs of its operator."""
    for other in others:
        beside = held.window is not None and other.window is not None and not held.window.overlaps(other.window)
        if other.seat.holder is held.seat.holder and not beside:
            raise RefusalError(AMBIGUOUS, f"{held.seat.seat.name} computes for {other.target.name!r} as well")
    return held


class _Finder:
    """The names and the values of one graph."""

    def __init__(self, model: OnnxModel, targets: Iterable[Target], base: BaseModel | None) -> None:
        self._model = model
        self._seats = tuple(quantized_seats(model, Names(model)))
        self._claims: dict[str, list[_Claim]] = {}
        for name, claim in _claims(self._seats):
            self._claims.setdefault(name, []).append(claim)
        wanted = [target.name for target in targets]
        self._prefix = uniform_prefix(wanted, self._claims) or Prefix()
        self._base = base
        stored = {**{name: name for name in base.names()}, **base.ties} if base is not None else {}
        self._stored = stored
        self._of_base = uniform_prefix(wanted, stored) or Prefix()
        self._samples: dict[ir.Node, _Sample | None] = {}

    def find(self, target: Target, before: Finding) -> Held:
        name = self._prefix.find(target.name, self._claims)
        known = self._known(target)
        claims = self._claims.get(name or "", ())
        fitting = [claim for claim in claims if _fits(claim.seat.kind, target)]
        if not fitting and known is not None and target.layout:
            return self._by_values(target, known, before)
        if not fitting:
            raise RefusalError(before.rule, before.message)
        if len(fitting) > 1:
            uses = ", ".join(claim.seat.seat.name for claim in fitting)
            raise RefusalError(AMBIGUOUS, f"several quantized operators have its name: {uses}")
        held = self._held(target, fitting[0], (NAME,))
        where = held.seat.seat.name
        if target.shape is not None and target.shape != held.shape:
            raise RefusalError(SHAPE, f"{where} is {list(held.shape)}; the adapter changes {list(target.shape)}")
        square = held.seat.kind is Kind.LINEAR and held.height == held.seat.width and held.seat.transposed is None
        if not target.layout and square:
            raise RefusalError(AMBIGUOUS, f"{where} is square, and nothing tells which way round the value is")
        if known is None or known.shape != held.shape:
            return held
        try:
            near, cosine = _near(weight_of(self._model, held.seat), held, known)
        except RefusalError:
            return held  # in a form that is not read, so that nothing can be compared
        if cosine < _SAME_WAY:
            raise RefusalError(OTHER_VALUES, f"{where} holds other values than the checkpoint, quantized")
        return self._held(target, fitting[0], (NAME, VALUE_MATCH) if near else (NAME,))

    def _by_values(self, target: Target, known: Array, before: Finding) -> Held:
        """The one operator whose matrix is the checkpoint's, rounded."""
        found = []
        for seat in self._seats:
            held = self._held(target, _Claim(seat), (VALUE_MATCH,))
            if _fits(seat.kind, target) and held.shape == known.shape and self._looks_like(held, known):
                found += [held] if _near(weight_of(self._model, seat), held, known)[0] else []
        if len(found) > 1:
            uses = ", ".join(held.seat.seat.name for held in found)
            raise RefusalError(AMBIGUOUS, f"several quantized operators hold its values: {uses}")
        if not found:
            raise RefusalError(before.rule, before.message)
        return found[0]

    def _looks_like(self, held: Held, known: Array) -> bool:
        """Whether a few outputs are near enough that all of them are worth a look; no weight is read twice for that."""
        axis = held.layout.index("out")
        if held.seat.holder not in self._samples:
            self._samples[held.seat.holder] = self._sample(held.seat)
        sample = self._samples[held.seat.holder]
        if sample is None:
            return False
        chosen = np.take(known, sample.outputs, axis).astype(np.float32)
        off = np.abs(sample.values - (chosen if axis == 0 else chosen.T))
        return float(np.mean(off <= sample.steps * _HALF)) >= _WITHIN

    def _sample(self, seat: QuantizedSeat) -> _Sample | None:
        try:
            weight = weight_of(self._model, seat)
        except RefusalError:
            return None
        outputs = np.unique(np.linspace(0, seat.height - 1, _SAMPLED, dtype=np.int64))
        values, steps = weight.values(("out", "in")), weight.codes.steps
        steps = steps if weight.axes == ("out", "in") else steps.T
        return _Sample(outputs, values[outputs].copy(), steps[outputs].copy())

    def _known(self, target: Target) -> Array | None:
        name = self._of_base.find(target.name, self._stored)
        return None if name is None or self._base is None else self._base.array(self._stored[name])

    def _held(self, target: Target, claim: _Claim, rules: tuple[str, ...]) -> Held:
        return Held(target, claim.seat, claim.window, rules)


def _claims(seats: Iterable[QuantizedSeat]) -> Iterator[tuple[str, _Claim]]:
    for seat in seats:
        for name in seat.names:
            yield name, _Claim(seat)
        for name, window in quantized_parts(seat.names, seat.holder, seat.height):
            if window is not None or name not in seat.names:
                yield name, _Claim(seat, window)


def _fits(kind: Kind, target: Target) -> bool:
    """Whether a quantized operator that has a place for targets of ``kind`` may hold the tensor of ``target``."""
    products = (Kind.LOHA, Kind.LOKR)
    return target.kind is kind or not target.layout or (kind is Kind.LINEAR and target.kind in products)


def values_of(weight: GraphWeight, held: Held) -> Array:
    """The tensor of a target as its operator holds it: float32, of the target's layout."""
    layout = held.layout
    values = weight.values(layout)
    if held.window is None:
        return values
    return np.take(values, held.window.indices(), layout.index("out"))


def _near(weight: GraphWeight, held: Held, known: Array) -> tuple[bool, float]:
    """Whether the matrix is ``known`` rounded to nearest, and the cosine of the two."""
    wanted = known.astype(np.float32)
    layout, axis = held.layout, held.layout.index("out")
    steps = weight.codes.steps if layout == weight.axes else weight.codes.steps.T
    steps = steps if held.window is None else np.take(steps, held.window.indices(), axis)
    values = values_of(weight, held)
    off = np.abs(values - wanted)
    within = float(
        np.mean(off <= steps * np.float32(0.502))
    )  # half a step, and what the type of the scales rounds away
    product = float(np.linalg.norm(values)) * float(np.linalg.norm(wanted))
    return within >= _WITHIN, float(np.vdot(values, wanted)) / product if product else float(not off.any())
