"""An adapter as the inputs of a switchable model, and back.

A (r, in) becomes its transpose (in, r), and B (out, r) becomes (r, out) with the scale multiplied into it, in
float64 and rounded once to the slot's element type: a run time multiplies nothing and casts nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.findings import Finding
from lora_registry.format.features import required_features
from lora_registry.onnx.slots.manifest import Role, Slot, SlotManifest
from lora_registry.onnx.slots.targets import slotted
from lora_registry.ops.arrays import Array, from_array, round_to, to_array
from lora_registry.ops.mergeable import refuse_gate
from lora_registry.ops.prefix import Prefix, uniform_prefix

NO_SLOT, OTHER_SHAPE, OTHER_BASE, RANGE = "W-007", "W-008", "W-009", "W-010"


@dataclass(frozen=True, slots=True)
class Factors:
    """What an adapter feeds to a switchable model.

    Attributes:
        arrays: name of the input to its elements; nothing for slots that the adapter leaves alone.
        proven: targets whose base tensor is, by its fingerprint, that of the model.
        unproven: the others, with the reason.
        folded: targets whose scale was multiplied into B, with the scale.
        cast: targets whose factors were rounded to another element type, with that type.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    proven: list[str] = field(default_factory=list)
    unproven: dict[str, str] = field(default_factory=dict)
    folded: dict[str, float] = field(default_factory=dict)
    cast: dict[str, str] = field(default_factory=dict)


def factors_for(manifest: SlotManifest, adapter: Adapter, *, scale: float = 1.0) -> Factors:
    """The inputs that make a switchable model base + ``adapter``.

    Args:
        manifest: the model's slots.
        adapter: any whose targets all have slots.
        scale: multiplies the adapter's own scales.

    Raises:
        UnsupportedError: the adapter has a gate, an extension that is part of its meaning, or a target that no slot
            can hold.
        InvalidInputError: a target has no slot, another shape or another base tensor, or a factor does not fit into
            the slot's element type; carries a finding for each.
        InconclusiveError: the adapter's names fit the slots under several prefixes.
    """
    refuse_gate(adapter, "a slot is on for a whole run")
    if needed := required_features(adapter):
        raise UnsupportedError(f"the adapter requires {', '.join(sorted(needed))}, which slots do not have")
    for target in adapter:
        slotted(target)
    prefix = uniform_prefix((target.name for target in adapter), manifest.slots) or Prefix()
    result, findings = Factors(), []
    for target in adapter:
        name = prefix.find(target.name, manifest.slots)
        problem = Finding(NO_SLOT, target.name, "the model has no slot for it") if name is None else None
        slot = manifest.slots[name] if name is not None else None
        if slot is not None:
            problem = _misfit(slot, target) or _other_base(slot, target, result) or _fill(slot, target, result, scale)
        findings += [problem] if problem is not None else []
    if findings:
        raise InvalidInputError.from_findings("adapter and switchable model do not fit", findings)
    return result


def _misfit(slot: Slot, target: Target) -> Finding | None:
    """Factors do not depend on which way round the base is stored, so only the lengths of their axes count."""
    assert target.shape is not None  # only tokens may leave it out
    lengths, wanted = (dict(zip(each.layout, each.shape or (), strict=True)) for each in (target, slot))
    same = lengths == wanted if slot.kind is not Kind.CONV else target.shape == slot.shape
    if target.kind is slot.kind and same:
        return None
    here, there = (f"{each.kind} {'x'.join(each.layout)} {list(each.shape or ())}" for each in (slot, target))
    return Finding(OTHER_SHAPE, target.name, f"the slot is for {here}, the adapter changes {there}")


def _other_base(slot: Slot, target: Target, result: Factors) -> Finding | None:
    if target.fingerprint is None:
        result.unproven[target.name] = "the adapter states no fingerprint"
    elif slot.fingerprint is None:
        result.unproven[target.name] = "the model holds it quantized"
    elif target.fingerprint == slot.fingerprint:
        result.proven.append(target.name)
    elif slot.rounded:
        result.unproven[target.name] = f"the model's weights are {slot.dtype}, perhaps rounded from the adapter's base"
    else:
        return Finding(OTHER_BASE, target.name, "the adapter was made for another base tensor")
    return None


def _fill(slot: Slot, target: Target, result: Factors, scale: float) -> Finding | None:
    a, b = to_array(target.tensors["A"]), to_array(target.tensors["B"])
    s = target.scale * scale
    if s != 1:
        result.folded[target.name] = s
        with np.errstate(over="ignore"):
            b = b.astype(np.float64) * s
    if target.tensors["A"].dtype != slot.dtype or target.tensors["B"].dtype != slot.dtype:
        result.cast[target.name] = slot.dtype
    for role, array in (("A", a), ("B", b)):
        made = round_to(array if array.dtype == np.float64 else array.astype(np.float32), slot.dtype)
        if not np.isfinite(made.astype(np.float64)).all():
            return Finding(RANGE, target.name, f"{role} does not fit into the slot's {slot.dtype}")
        wanted = slot.factor_shape("A" if role == "A" else "B", target.rank or 0)
        turned = made.T if slot.kind is not Kind.CONV else made.reshape(wanted)
        result.arrays[slot.input("A" if role == "A" else "B")] = np.ascontiguousarray(turned)
    return None


def adapter_of(manifest: SlotManifest, tensors: Mapping[str, Tensor]) -> Adapter:
    """The adapter that ``tensors`` are for a model that is not batched: scale 1, factors as they were fed.

    Raises:
        InvalidInputError: a name is no slot's, a factor lacks its partner, or shapes or types are not the slot's;
            carries a finding for each.
        UnsupportedError: the model is batched.
    """
    if manifest.batched:
        raise UnsupportedError("the factors of a batched model belong to several adapters")
    findings = [*check_inputs(manifest, tensors)]
    if findings:
        raise InvalidInputError.from_findings("tensors and switchable model do not fit", findings)
    filled = [slot for slot in manifest.slots.values() if slot.input("A") in tensors]
    return Adapter(targets=tuple(_target(slot, tensors) for slot in filled))


def check_inputs(manifest: SlotManifest, tensors: Mapping[str, Tensor]) -> Iterable[Finding]:
    """What keeps ``tensors`` from being the inputs of a model, each with its place."""
    known: dict[str, tuple[Slot, Role]] = {}
    for slot in manifest.slots.values():
        known |= {slot.input("A"): (slot, "A"), slot.input("B"): (slot, "B")}
    for name, tensor in tensors.items():
        if name not in known:
            yield Finding(NO_SLOT, name, "the model has no such slot")
            continue
        slot, role = known[name]
        partner = slot.input("B" if role == "A" else "A")
        if partner not in tensors:
            yield Finding(OTHER_SHAPE, name, f"{partner!r} is missing")
            continue
        lead = tensor.shape[: len(tensor.shape) - len(slot.factor_shape(role, 0))] if manifest.batched else ()
        other: Role = "B" if role == "A" else "A"
        rank = _rank(slot, role, tensor.shape[len(lead) :])
        if (
            rank is None
            or rank != _rank(slot, other, tensors[partner].shape[len(lead) :])
            or tensor.dtype != slot.dtype
        ):
            wanted = f"{slot.dtype} {[*lead, *slot.factor_shape(role, rank or 1)]}"
            yield Finding(OTHER_SHAPE, name, f"it is {tensor.dtype} {list(tensor.shape)}; the slot takes {wanted}")


def _rank(slot: Slot, role: Role, shape: tuple[int, ...]) -> int | None:
    """The rank of a factor of ``shape``; None where it is no factor of the slot."""
    axis = slot.rank_axis(role)
    if len(shape) != len(slot.factor_shape(role, 0)):
        return None
    return shape[axis] if shape == slot.factor_shape(role, shape[axis]) else None


def _target(slot: Slot, tensors: Mapping[str, Tensor]) -> Target:
    a, b = (to_array(tensors[slot.input(role)]) for role in _ROLES)
    if slot.kind is not Kind.CONV:
        a, b = a.T, b.T
    fingerprint: Digest | None = None if slot.rounded else slot.fingerprint
    return Target(
        name=slot.target,
        kind=slot.kind,
        layout=slot.layout,
        shape=slot.shape,
        tensors={"A": from_array(a), "B": from_array(b)},
        fingerprint=fingerprint,
    )


_ROLES: tuple[Role, Role] = ("A", "B")
