"""Merging into weights that torch holds already, on whatever device they are, without a copy through the host.

The refusals are those of a merge into a checkpoint, and so is the arithmetic (:mod:`lora_registry.device`). What goes
to the device is the adapter; what comes back is six numbers a tensor. Fingerprints are not compared, since they are
digests of weights that would have to come to the host: merge into the checkpoint, or ``loreg verify`` the model once it
is saved, where that matters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.device.block import computed_in, make_run
from lora_registry.device.change import Change
from lora_registry.device.elements import dtype_name, from_tensor, write_rounded
from lora_registry.device.failures import device_errors
from lora_registry.device.figures import COUNT, is_sound, sums_of
from lora_registry.device.opening import settle
from lora_registry.device.precision import full_precision
from lora_registry.device.workspace import Workspace
from lora_registry.errors import ConflictError, InvalidInputError, MachineError, UnsupportedError
from lora_registry.merge.fitting.fit import fit
from lora_registry.ops.arrays import Array
from lora_registry.ops.change import RowMerger, refuse_nonfinite
from lora_registry.ops.fidelity import Fidelity, fidelity
from lora_registry.ops.mergeable import check_mergeable, check_together
from lora_registry.ops.tied import TiedPolicy, check_policy, policy_for
from lora_registry.runtime.names import named_tensors
from lora_registry.text import listed

ELEMENTS = 1 << 24
"""Elements that are computed together, more or less; they take half a gigabyte of workspace."""


@dataclass(frozen=True, slots=True, eq=False)
class Resident:
    """What a merge into resident weights made.

    Attributes:
        tensors: every tensor that the adapter changes, by its name among the weights: the new values, of the shape and
            element type of the old ones and on their device. Where the merge was in place, these are the weights.
        fidelity: how much of each change survived the rounding to the element type; by the same names, without those
            whose values the adapter replaces.
    """

    tensors: Mapping[str, torch.Tensor]
    fidelity: Mapping[str, Fidelity]


def merge_resident(
    adapter: Adapter,
    weights: torch.nn.Module | MutableMapping[str, torch.Tensor],
    *,
    in_place: bool = False,
    tied: TiedPolicy = "untie",
) -> Resident:
    """Merge ``adapter`` into tensors where they are, on a GPU or not.

    W' is computed in float32 (float64 for F32 and F64 weights) and rounded once, as by ``loreg merge --device cuda``.
    In place, everything is computed once before anything is changed, so that a refusal leaves the weights as they were;
    only a device that fails while they are being written may leave some of them merged, and the error says so.

    Example::

        model = AutoModelForCausalLM.from_pretrained("./base", dtype="bfloat16").to("cuda")
        merged = merge_resident(Registry.open().load("support/tone:1"), model, in_place=True)
        worst = min(merged.fidelity.values(), key=lambda kept: kept.retention)

    Args:
        adapter: what is merged. Its targets find their tensors by name, with one prefix that is added to, or taken off,
            all of them where need be.
        weights: a module, or a state dict; its tensors may be on several devices.
        in_place: change the weights; otherwise they stay, and what is returned stands beside them.
        tied: what happens where the adapter changes one of several names of one tensor. ``untie`` gives that name
            values of its own: in place, a module gets a new parameter, and a state dict a new tensor, under it.

    Returns:
        The changed tensors, and how much of each change survived.

    Raises:
        InvalidInputError: a target has no tensor, or one of another shape; or a result is not finite although the
            weight is, or beyond the range of its type.
        InconclusiveError: the names fit under several prefixes.
        UnsupportedError: the adapter has a gate or grows a table, a weight is quantized, or changes meet in one tensor
            that are no sums.
        ConflictError: a tensor is tied, and ``tied`` is ``error``.
        UsageError: there is no such policy for tied tensors.
        MachineError: the memory of a device is used up, or it failed.
    """
    check_policy(tied)
    check_mergeable(adapter)
    tensors = named_tensors(weights) if isinstance(weights, torch.nn.Module) else dict(weights)
    jobs = _jobs(adapter, tensors, tied)
    with torch.no_grad(), full_precision():
        if not in_place:
            made = {job.name: torch.empty_like(job.flat) for job in jobs}
            measured = _measure(jobs, made)
            return Resident({name: made[job.name].view(job.shape) for job in jobs for name in job.names}, measured)
        measured = _measure(jobs, {})
        try:
            written = {name: tensor for job in jobs for name, tensor in _write(job, weights).items()}
            for device in {job.weight.device for job in jobs}:
                with device_errors(device):
                    settle(device)  # what fails later than it is asked for
        except MachineError as error:
            raise MachineError(f"{error}; some weights are merged and some are not: load them anew") from error
        return Resident(written, measured)


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One tensor that is changed.

    Attributes:
        names: its names among the weights that get the new values.
        weight: W.
        targets: what changes it.
        shares: whether W has other names too, which keep it.
    """

    names: tuple[str, ...]
    weight: torch.Tensor
    targets: tuple[Target, ...]
    shares: bool

    @property
    def name(self) -> str:
        """The name of the tensor that the adapter's names lead to."""
        return self.names[0]

    @property
    def shape(self) -> torch.Size:
        """Axis lengths of W."""
        return self.weight.shape

    @property
    def flat(self) -> torch.Tensor:
        """W in row-major order: itself, or a copy where it does not lie so."""
        return self.weight.detach().reshape(-1)

    @property
    def row(self) -> int:
        """Elements that must stay together."""
        experts = any(target.kind is Kind.EXPERTS for target in self.targets)
        return int(max(1, self.shape[-1] if experts else prod(self.shape[1:])))

    def change(self) -> Change | None:
        """The changes on W's device; None where the values are replaced."""
        if self.targets[0].kind is Kind.FULL or not self.weight.is_floating_point():
            return None
        wide = computed_in(self.weight.dtype, self.weight.dtype) == torch.float64
        mergers = [RowMerger(target, tuple(self.shape), np.float64 if wide else np.float32) for target in self.targets]
        change = Change(mergers, self.weight.device)
        if change.needs_norms:
            flat = self.flat
            change.measure_norms(lambda start, stop: flat[start:stop], list(self.runs()))
        return change

    def runs(self) -> Iterable[tuple[int, int]]:
        """Ranges of elements, whole rows each."""
        step = max(1, ELEMENTS // self.row) * self.row
        size = self.weight.numel()
        return ((start, min(start + step, size)) for start in range(0, size, step))


class _View:
    """Tensors as the base model that an adapter is held against; no element is ever looked at."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    @property
    def ties(self) -> Mapping[str, str]:
        """None: every name is there."""
        return {}

    def names(self) -> Iterable[str]:
        """All of them, those of one tensor too."""
        return self._tensors

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths."""
        return tuple(self._tensors[name].shape)

    def dtype(self, name: str) -> str:
        """Element type by safetensors' name."""
        return dtype_name(self._tensors[name].dtype)

    def array(self, name: str) -> Array:
        """Never asked for, since the adapter has no fingerprints here."""
        raise AssertionError(f"{name} stays where it is")


def _jobs(adapter: Adapter, tensors: Mapping[str, torch.Tensor], tied: TiedPolicy) -> list[_Job]:
    """What is to be done, all of it checked."""
    plain = replace(adapter, targets=tuple(replace(target, fingerprint=None) for target in adapter))
    fitted = fit(plain, _View(tensors))
    fitted.require("the adapter and these weights")
    if fitted.grown:
        raise UnsupportedError(f"{listed(sorted(fitted.grown))}: only a merge into a checkpoint grows the vocabulary")
    by_place: dict[str, list[Target]] = {}
    for change in fitted.changes:
        by_place.setdefault(change.place, []).append(change.target)
    jobs = []
    for place, targets in by_place.items():
        check_together(place, targets)
        weight = tensors[place]
        others = tuple(name for name, tensor in tensors.items() if name != place and _is_same(tensor, weight))
        policies = {policy_for(target, tied) for target in targets} if others else set()
        if "error" in policies:
            raise ConflictError(f"{place} is tied to {others[0]}; say whether to untie them or to change both")
        both = "both" in policies
        if both and by_place.keys() & set(others):
            raise UnsupportedError(f"{place} and {others[0]} are one tensor, and the adapter changes each")
        jobs.append(_Job((place, *(others if both else ())), weight, tuple(targets), bool(others) and not both))
    return jobs


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are one set of values."""
    layout = (one.shape, one.stride(), one.dtype, one.device) == (
        other.shape,
        other.stride(),
        other.dtype,
        other.device,
    )
    return one is other or (layout and one.numel() > 0 and one.data_ptr() == other.data_ptr())


def _measure(jobs: Iterable[_Job], made: Mapping[str, torch.Tensor]) -> dict[str, Fidelity]:
    """Compute every job, into ``made`` where there is a place for it, and see to it that all may be used."""
    figures = {}
    for job in jobs:
        with device_errors(job.weight.device):
            figures[job.name] = _compute(job, made.get(job.name))
    measured = {}
    for job in jobs:
        with device_errors(job.weight.device):
            found = figures[job.name]
            if found is None:
                continue
            told: list[float] = found.tolist()
            if not is_sound(told):
                _explain(job)
        for name in job.names:
            measured[name] = fidelity([sums_of(told, job.weight.numel())])
    return measured


def _compute(job: _Job, out: torch.Tensor | None) -> torch.Tensor | None:
    """Ask the device for W', and for the figures of the change; none where values are replaced.

    Args:
        job: what.
        out: where W' goes, flat; None only measures.
    """
    change, flat = job.change(), job.flat
    if change is None:
        value = _value(job)
        if out is not None:
            out.copy_(value)
        return None
    longest = max((stop - start for start, stop in job.runs()), default=0)
    workspace = Workspace.on(flat.device, longest)
    scratch = torch.empty(longest if out is None else 0, dtype=flat.dtype, device=flat.device)
    figures = torch.zeros(COUNT, dtype=torch.float64, device=flat.device)
    for start, stop in job.runs():
        rounded = scratch[: stop - start] if out is None else out[start:stop]
        make_run(change, start, flat[start:stop], rounded, figures, workspace)
    return figures


def _value(job: _Job) -> torch.Tensor:
    """What replaces W, or rows of integers in it, flat, of W's type."""
    target, flat = job.targets[0], job.flat
    given = from_tensor(target.tensors["value"], flat.device)
    if target.kind is Kind.TOKENS:
        table = flat.clone().view(job.shape)
        table[list(target.rows)] = given
        return table.reshape(-1)
    if not flat.is_floating_point():
        return given.reshape(-1)
    value = torch.empty_like(flat)
    write_rounded(given.reshape(-1), value)
    _refuse(target.name, job.name, 0, flat, given.reshape(-1), value)
    return value


def _explain(job: _Job) -> None:
    """Go over a job whose figures are not finite once more: it is the weights that are not, or it is refused."""
    change, flat = job.change(), job.flat
    assert change is not None
    suspect = torch.zeros((), dtype=torch.float64, device=flat.device)
    for start, stop in job.runs():
        before = flat[start:stop].to(change.dtype)
        wanted, delta = torch.empty_like(before), torch.empty_like(before)
        change.write(start, before, wanted, delta, suspect)
        rounded = torch.empty_like(flat[start:stop])
        write_rounded(wanted, rounded)
        _refuse(job.targets[0].name, job.name, start, before, wanted, rounded)
    if suspect.item():
        raise InvalidInputError(f"{job.targets[0].name}: the norm of an output leaves the range of float64")


def _refuse(
    target: str, name: str, start: int, before: torch.Tensor, wanted: torch.Tensor, rounded: torch.Tensor
) -> None:
    """Refuse what is not finite although W is, and what is no number any more in W's type."""
    if (~wanted.isfinite() & before.isfinite()).any():
        refuse_nonfinite(target, start, before.double().cpu().numpy(), wanted.double().cpu().numpy())
    if (~rounded.isfinite() & wanted.isfinite()).any():
        raise InvalidInputError(
            f"{name}: the merged weight is beyond the range of {dtype_name(rounded.dtype)}; choose another dtype"
        )


def _write(job: _Job, weights: torch.nn.Module | MutableMapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put W' in the place of W."""
    with device_errors(job.weight.device):
        if job.shares:
            new = torch.empty_like(job.flat)
            _compute(job, new)
            return {job.name: _untied(weights, job.name, new.view(job.shape))}
        flat = job.flat
        _compute(job, flat)
        if not job.weight.is_contiguous():  # then ``flat`` is a copy
            job.weight.copy_(flat.view(job.shape))
    return dict.fromkeys(job.names, job.weight)


def _untied(
    weights: torch.nn.Module | MutableMapping[str, torch.Tensor], name: str, value: torch.Tensor
) -> torch.Tensor:
    """Give one name of a shared tensor values of its own."""
    if not isinstance(weights, torch.nn.Module):
        weights[name] = value
        return value
    path, _, attribute = name.rpartition(".")
    owner = weights.get_submodule(path)
    before = getattr(owner, attribute)
    if isinstance(before, torch.nn.Parameter):
        value = torch.nn.Parameter(value, requires_grad=before.requires_grad)
    setattr(owner, attribute, value)
    return value
