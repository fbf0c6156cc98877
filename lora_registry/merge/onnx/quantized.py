"""What a merge does with the targets whose tensors an ONNX model holds quantized.

By default a change is kept beside its weight, as two constants that the graph multiplies by
(:mod:`~lora_registry.onnx.quantized.branch`): nothing of it is lost, and the codes stay as they are. With
``requantize`` it is merged into the codes (:mod:`~lora_registry.merge.onnx.requantized`), which four bits hardly hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from lora_registry.adapter import Adapter, Json, Kind
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, InvalidInputError, UnsupportedError
from lora_registry.findings import Finding
from lora_registry.merge.onnx.edits import Edits
from lora_registry.merge.onnx.requantized import requantize
from lora_registry.merge.receipt import TensorRecord
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.quantized.branch import check_branch, check_earlier, keep_beside
from lora_registry.onnx.quantized.resolve import Held, attempt_quantized, values_of
from lora_registry.onnx.quantized.weight import weight_of
from lora_registry.onnx.refusal import TIED, UNSUPPORTED, RefusalError
from lora_registry.onnx.resolution import Resolution, ResolvedBase
from lora_registry.onnx.resolve import attempt
from lora_registry.ops.arrays import Array
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.ops.tied import TiedPolicy, policy_for
from lora_registry.quantized.weight import Scheme
from lora_registry.text import plural

LEAST_RETENTION = 0.5
"""Share of a change that must survive quantizing again where the caller names none (spec/merging.md, section 9.2)."""


@dataclass(frozen=True, slots=True, eq=False)
class Resolved:
    """Where the targets of an adapter are: in float initializers, or held by quantized operators.

    Attributes:
        model: the graph.
        floats: the first.
        held: the second.
        forms: of those, how each is quantized, by target name.
        prints: fingerprints of what those hold, where that can be read.
    """

    model: OnnxModel
    floats: tuple[Resolution, ...]
    held: tuple[Held, ...]
    forms: Mapping[str, str]
    prints: dict[str, Digest]

    @property
    def scheme(self) -> Scheme | None:
        """How the base is quantized where the adapter changes it; None where it is not."""
        return Scheme(" and ".join(sorted(set(self.forms.values())))) if self.held else None

    def view(self) -> BaseModel:
        """The tensors that the adapter touches, as a checkpoint would show them."""
        return _View(self.model, self.floats, self.held)

    def apply(self, edits: Edits, *, again: bool) -> None:
        """Make the changes of the held tensors.

        Args:
            edits: get what has to be written, and records for the receipt.
            again: whether the weights are quantized again.

        Raises:
            UnsupportedError: a change can be made in neither way; or there is nothing to quantize again.
            InvalidInputError: a result is not finite.
        """
        if again and not self.held:
            raise UnsupportedError(
                f"{self.model.path}: nothing that the adapter changes is quantized, and nothing can be requantized"
            )
        groups: dict[ir.Node, list[Held]] = {}
        for held in self.held:
            check_earlier(held)
            if not again:
                check_branch(held)
            groups.setdefault(held.seat.holder, []).append(held)
        for group in groups.values():
            if again:
                requantize(self.model, edits, group)
            else:
                self._beside(edits, group)

    def _beside(self, edits: Edits, group: Sequence[Held]) -> None:
        names = keep_beside(self.model, edits.patch, group, lambda held: _values(self.model, held))
        edits.structural = True
        for held in group:
            constants: list[Json] = [*names]
            evidence = {**held.evidence(), "kept": "beside", "constants": constants}
            target = held.target
            edits.kept.append(TensorRecord(target.name, target.name, target.kind, held.seat.dtype, None, evidence))

    def notes(self, *, again: bool) -> tuple[str, ...]:
        """What the receipt says of the held tensors."""
        if not self.held:
            return ()
        what = f"{plural(len(self.held), 'target')} of quantized weights ({self.scheme})"
        if again:
            return (f"{what} merged into the codes, which were rounded to nearest again",)
        return (f"{what} kept beside them: the codes are the base's, and the change is computed with its own factors",)

    def cautions(self, *, again: bool) -> tuple[str, ...]:
        """What speaks against the merge."""
        calibrated = sum(_is_calibrated(held) for held in self.held) if again else 0
        if not calibrated:
            return ()
        what = f"the ranges of activations behind {plural(calibrated, 'changed operator')}"
        return (f"{what} were calibrated for the base, and not again",)


def resolve_all(
    model: OnnxModel, adapter: Adapter, base: BaseModel | None, tied: TiedPolicy, *, again: bool = False
) -> Resolved:
    """Find the initializers, or the quantized operators, of every target.

    Args:
        model: the graph.
        adapter: what is to be merged.
        base: the checkpoint that the graph was exported from, if at hand.
        tied: what a target on a tied tensor changes.
        again: whether held tensors are to be quantized again, which means that they must be of a form that is read.

    Raises:
        InvalidInputError, UnsupportedError, ConflictError, InconclusiveError: as
            :func:`~lora_registry.onnx.resolve.resolve`.
    """
    floats, findings = attempt(model, adapter, base=base, tied=tied)
    refused = {finding.place: finding for finding in findings}
    missing = [target for target in adapter if target.name in refused]
    found = {resolution.target.name for resolution in floats}
    twice = [finding for finding in findings if finding.place in found]  # resolved, and so was another
    held, findings = attempt_quantized(model, [each for each in missing if each.name not in found], refused, base)
    _refuse(model, [*twice, *findings], len(adapter.targets))
    for each in held:
        _refuse_tied(each, base, tied)
    forms, prints = {}, {}
    for each in held:
        try:
            weight = weight_of(model, each.seat)
        except RefusalError as refusal:
            if again:
                raise UnsupportedError(f"{each.target.name}: {refusal}") from None
            forms[each.target.name] = each.seat.holder.op_type
            continue
        forms[each.target.name] = weight.form
        prints[each.target.name] = target_fingerprint(each.target, values_of(weight, each))
    return Resolved(model, floats, held, forms, prints)


def _refuse(model: OnnxModel, findings: Sequence[Finding], count: int) -> None:
    if not findings:
        return
    summary = f"{model.path}: {len(findings)} of {count} targets not resolved"
    if all(finding.rule == TIED for finding in findings):
        raise ConflictError(f"{summary}: {findings[0]}")
    refused = UnsupportedError if all(finding.rule in UNSUPPORTED for finding in findings) else InvalidInputError
    raise refused.from_findings(summary, findings)


def _refuse_tied(held: Held, base: BaseModel | None, tied: TiedPolicy) -> None:
    """Refuse what would have to change a second tensor with the first, which no quantized form does.

    Raises:
        ConflictError: the tensor is tied, and ``tied`` is ``error``.
        UnsupportedError: it is tied, and both uses are to change.
    """
    target, operators = held.target, {usage.node.op_type for usage in held.seat.codes.uses()}
    ties = base.ties if base is not None else {}
    is_tied = len(operators) > 1 or any(target.name in pair for pair in ties.items())
    policy = policy_for(target, tied)
    if target.kind is Kind.TOKENS or (is_tied and policy == "both"):
        raise UnsupportedError(
            f"{target.name}: the base holds it quantized ({held.seat.holder.op_type}), where only one of two tied uses "
            "can change; merge into a float model"
        )
    if is_tied and policy == "error":
        raise ConflictError(f"{target.name} is tied: it is read as embedding rows and as a matrix")


def _values(model: OnnxModel, held: Held) -> Array:
    try:
        return values_of(weight_of(model, held.seat), held)
    except RefusalError as refusal:
        raise UnsupportedError(f"{held.target.name}: {refusal}; magnitudes need its values") from None


def _is_calibrated(held: Held) -> bool:
    """Whether the operator reads activations whose range is a constant (QDQ)."""
    producer = held.seat.seat.source.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


class _View:
    """Float initializers and what quantized operators stand for, by target name."""

    def __init__(self, model: OnnxModel, floats: tuple[Resolution, ...], held: Iterable[Held]) -> None:
        self._model = model
        self._floats = ResolvedBase(model, floats)
        self._held = {each.target.name: each for each in held}
        self.ties: dict[str, str] = {}

    def names(self) -> tuple[str, ...]:
        return (*self._floats.names(), *self._held)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._held[name].shape if name in self._held else self._floats.shape(name)

    def dtype(self, name: str) -> str:
        return "F32" if name in self._held else self._floats.dtype(name)

    def array(self, name: str) -> Array:
        return _values(self._model, self._held[name]) if name in self._held else self._floats.array(name)
