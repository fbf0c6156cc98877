"""A switchable model: a copy of any supported model with slots for adapters, which is the base while none is on.

Nothing of the base is computed anew: its nodes and its data stay as they are, and the branches are added beside
them (:mod:`lora_registry.onnx.slots.branch`). What a slot is called, and what a reader relies on, says
``spec/switchable.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_registry import __version__
from lora_registry.adapter import Adapter, Target
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, InvalidInputError, NotFoundError, UnsupportedError, UsageError
from lora_registry.findings import Finding
from lora_registry.onnx.model import OnnxModel, dtype_of
from lora_registry.onnx.names import Names
from lora_registry.onnx.patch import Patch
from lora_registry.onnx.refusal import AMBIGUOUS, NOT_FOUND, QUANTIZED, SHAPE, UNSUPPORTED, RefusalError
from lora_registry.onnx.resolution import Resolution, ResolvedBase
from lora_registry.onnx.resolve import attempt
from lora_registry.onnx.save import SavedFile, save
from lora_registry.onnx.slots.branch import Branches
from lora_registry.onnx.slots.manifest import KEY, Slot, SlotManifest
from lora_registry.onnx.slots.quantized_seats import QuantizedSeat, by_name, quantized_seats
from lora_registry.onnx.slots.seat import Seat, is_computed_at_load, seats_of
from lora_registry.onnx.slots.targets import matching, of_adapters
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.ops.prefix import Prefix, uniform_prefix
from lora_registry.progress import Progress

_OLDEST_IR = 4  # since then an initializer need not be an input, so that being both says that it can be overridden


@dataclass(frozen=True, slots=True, kw_only=True)
class Switchable:
    """What was made.

    Attributes:
        manifest: the slots.
        files: the model, and its data file if there is one.
        variable: names of operators whose result did not depend on any input. A runtime computed it once, when it
            opened the base; now it can change, and what follows is perhaps added up in another order (W-002).
    """

    manifest: SlotManifest
    files: tuple[SavedFile, ...]
    variable: tuple[str, ...] = ()


def add_slots(
    model_path: str | Path,
    out: str | Path,
    *,
    adapters: Sequence[Adapter] = (),
    patterns: Sequence[str] = (),
    base: BaseModel | None = None,
    batched: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Switchable:
    """Write a switchable copy of a model.

    Args:
        model_path: the base, from any exporter, quantized or not; never changed.
        out: the ``.onnx`` to write. The base's external data are copied to ``<out>.data`` as they are, by the file
            system where it can share blocks.
        adapters: get a slot for each of their targets.
        patterns: shell patterns over the names of the checkpoint's tensors; each that matches gets a slot.
        base: the checkpoint that the model was exported from: finds tensors by their values, and gives fingerprints
            that are true where the graph's weights were rounded or quantized.
        batched: let each row of a batch choose its own adapter.
        overwrite: whether outputs may exist.
        progress: see :func:`lora_registry.onnx.save.save`.

    Raises:
        UsageError: neither adapters nor patterns.
        NotFoundError: no tensor matches a pattern.
        UnsupportedError: a target that no slot can hold, or operators that no branch can follow.
        InvalidInputError: a target was not found, or does not fit; carries a finding for each.
        ConflictError: the model has slots already, adapters contradict each other, or an output exists.
        NotAllowedError, MachineError: see :func:`lora_registry.onnx.save.save`.
    """
    if not adapters and not patterns:
        raise UsageError("say which tensors get slots: by adapters, or by a pattern over their names")
    model, out = OnnxModel.open(model_path), Path(out)
    if KEY in model.ir.metadata_props:
        raise ConflictError(f"{model.path} has slots already; start from its base")
    names = Names(model)
    quantized = tuple(quantized_seats(model, names))
    targets = {target.name: target for target in matching(model, names, quantized, patterns, base)}
    if patterns and not targets:
        raise NotFoundError(f"{model.path}: no tensor that could have a slot is called {' or '.join(patterns)}")
    targets |= {target.name: target for target in of_adapters(adapters)}
    seated = _seated(model, list(targets.values()), quantized, base)
    manifest = SlotManifest(
        slots={slot.target: slot for slot, _ in seated}, batched=batched, tool=f"loreg {__version__}"
    )
    variable = [seat.name for _, seats in seated for seat in seats if is_computed_at_load(seat.source)]
    branches, findings = Branches(model, batched=batched), []
    for slot, seats in seated:
        try:
            branches.add(slot, seats)
        except RefusalError as refusal:
            findings.append(Finding(refusal.rule, slot.target, str(refusal)))
    _refuse(model, findings, len(seated))
    if (model.ir.ir_version or 0) < _OLDEST_IR:
        model.ir.ir_version = _OLDEST_IR
    patch = Patch(model)
    patch.annotate({KEY: manifest.encode()})
    files = save(patch, out, overwrite=overwrite, progress=progress)
    return Switchable(manifest=manifest, files=files, variable=tuple(variable))


def _refuse(model: OnnxModel, findings: Sequence[Finding], count: int) -> None:
    if findings:
        refused = UnsupportedError if all(finding.rule in UNSUPPORTED for finding in findings) else InvalidInputError
        raise refused.from_findings(f"{model.path}: {len(findings)} of {count} targets get no slot", findings)


def _seated(
    model: OnnxModel, targets: Sequence[Target], quantized: Sequence[QuantizedSeat], base: BaseModel | None
) -> list[tuple[Slot, tuple[Seat, ...]]]:
    """The slot of every target, and its seats: found before the graph is edited."""
    resolutions, findings = attempt(model, targets, base=base)
    view, prints = ResolvedBase(model, resolutions), _Fingerprints(base, targets)
    refused = {finding.place: finding for finding in findings}
    missing = [target for target in targets if target.name in refused]
    beside = _Quantized(quantized, missing)
    resolved = {resolution.target.name: resolution for resolution in resolutions}
    seated: list[tuple[Slot, tuple[Seat, ...]]] = []
    problems: list[Finding] = []
    for target in targets:
        try:
            if target.name not in refused:
                seated.append(_beside_float(resolved[target.name], view, prints))
            elif refused[target.name].rule in (QUANTIZED, NOT_FOUND):
                seated.append(beside.slot(target, refused[target.name], prints))
            else:
                problems.append(refused[target.name])
        except RefusalError as refusal:
            problems.append(Finding(refusal.rule, target.name, str(refusal)))
    _refuse(model, problems, len(targets))
    return seated


def _beside_float(resolution: Resolution, view: ResolvedBase, prints: _Fingerprints) -> tuple[Slot, tuple[Seat, ...]]:
    target = resolution.target
    carriers = resolution.carriers
    seats = tuple(seat for carrier in carriers for seat in seats_of(carrier, target.kind))
    dtype = dtype_of(carriers[0].value)
    known = prints.of(target)
    slot = Slot(
        target=target.name,
        kind=target.kind,
        layout=target.layout,
        shape=view.shape(target.name),
        dtype=dtype,
        nodes=tuple(seat.name for seat in seats),
        fingerprint=known or target_fingerprint(target, view.array(target.name)),
        rounded=known is None and dtype not in ("F32", "F64"),
    )
    return slot, seats


class _Fingerprints:
    """Fingerprints of a checkpoint's tensors, by the targets of an adapter."""

    def __init__(self, base: BaseModel | None, targets: Iterable[Target]) -> None:
        self._base = base
        names = set(base.names()) | set(base.ties) if base is not None else set()
        self._names = names
        self._prefix = uniform_prefix((target.name for target in targets), names) or Prefix()

    def of(self, target: Target) -> Digest | None:
        """The fingerprint of its base tensor; None where there is no checkpoint, or no such tensor in it."""
        name = self._prefix.find(target.name, self._names)
        if self._base is None or name is None:
            return None
        return target_fingerprint(target, self._base.array(self._base.ties.get(name, name)))


class _Quantized:
    """Targets beside quantized operators."""

    def __init__(self, seats: Sequence[QuantizedSeat], targets: Sequence[Target]) -> None:
        self._by_name = by_name(iter(seats))
        self._prefix = uniform_prefix((target.name for target in targets), self._by_name) or Prefix()

    def slot(self, target: Target, refused: Finding, prints: _Fingerprints) -> tuple[Slot, tuple[Seat, ...]]:
        """The slot of ``target``, and its one seat.

        Raises:
            RefusalError: no quantized operator has its name, or several have, or the axes are of other lengths.
        """
        name = self._prefix.find(target.name, self._by_name)
        found = self._by_name[name] if name is not None else []
        if not found:
            raise RefusalError(refused.rule, refused.message)
        if len(found) > 1:
            uses = ", ".join(each.seat.name for each in found)
            raise RefusalError(AMBIGUOUS, f"several operators have its name: {uses}")
        (held,) = found
        if target.kind is not held.kind:
            raise RefusalError(refused.rule, f"{held.seat.name} holds a {held.kind}, the target is a {target.kind}")
        shape = (held.width, held.height) if target.layout == ("in", "out") else (held.height, held.width)
        if target.shape is not None and target.shape != shape:
            raise RefusalError(SHAPE, f"{held.seat.name} is {list(shape)}; the adapter changes {list(target.shape)}")
        slot = Slot(
            target=target.name,
            kind=target.kind,
            layout=target.layout,
            shape=shape,
            dtype=held.dtype,
            nodes=(held.seat.name,),
            fingerprint=prints.of(target),
        )
        return slot, (held.seat,)


def slots_of(path: str | Path) -> SlotManifest:
    """The slots of the model at ``path``.

    Raises:
        UnsupportedError: it has none.
        NotFoundError, InvalidInputError: see :meth:`lora_registry.onnx.model.OnnxModel.open`.
    """
    manifest = SlotManifest.of(OnnxModel.open(path).ir.metadata_props)
    if manifest is None:
        raise UnsupportedError(f"{path} has no slots; `loreg onnx slots` makes a switchable model of it")
    return manifest
