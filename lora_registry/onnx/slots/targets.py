"""Which targets get slots: those of adapters, or every tensor of the graph whose name matches a pattern."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase

from lora_registry.adapter import Adapter, Kind, Layout, Target
from lora_registry.errors import ConflictError, UnsupportedError
from lora_registry.onnx.manifest import Manifest
from lora_registry.onnx.model import FLOATING, OnnxModel, dtype_of, shape_of
from lora_registry.onnx.names import Names
from lora_registry.onnx.sites import Axes, Read, Site
from lora_registry.onnx.slots.manifest import KINDS
from lora_registry.onnx.slots.quantized_seats import QuantizedSeat
from lora_registry.onnx.values import carriers_of, swap
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.mergeable import refuse_gate, refuse_groups

_KINDS = {Read.MATRIX: Kind.LINEAR, Read.ROWS: Kind.EMBEDDING, Read.KERNEL: Kind.CONV}
_CHECKPOINT: Layout = ("out", "in")


def slotted(target: Target) -> Target:
    """``target`` as what a slot needs to know of it: no tensors.

    Raises:
        UnsupportedError: slots hold the factors of linear, embedding and plain conv targets, and nothing else.
    """
    if target.kind not in KINDS:
        raise UnsupportedError(f"{target.name}: a {target.kind} target has no factors that a slot could hold; merge it")
    for role, what in (("magnitude", "a magnitude (DoRA)"), ("value", "a value beside its factors")):
        if role in target.tensors:
            raise UnsupportedError(f"{target.name}: {what} has no slot: the change is no sum; merge it")
    refuse_groups(target)
    return Target(name=target.name, kind=target.kind, layout=target.layout, shape=target.shape, tensors={})


def of_adapters(adapters: Iterable[Adapter]) -> list[Target]:
    """The targets of all ``adapters``, each once, ascending by name.

    Raises:
        UnsupportedError: an adapter has a gate, or a target that no slot can hold.
        ConflictError: two adapters say different things about the same base tensor.
    """
    found: dict[str, Target] = {}
    for adapter in adapters:
        refuse_gate(adapter, "a slot is on for a whole run")
        for target in adapter:
            wanted = slotted(target)
            known = found.setdefault(target.name, wanted)
            if (known.kind, known.layout, known.shape) != (wanted.kind, wanted.layout, wanted.shape):
                raise ConflictError(f"{target.name}: the adapters take it for {_said(known)} and for {_said(wanted)}")
    return [found[name] for name in sorted(found)]


def matching(
    model: OnnxModel,
    names: Names,
    quantized: Sequence[QuantizedSeat],
    patterns: Sequence[str],
    base: BaseModel | None,
) -> list[Target]:
    """The tensors of a graph whose names match one of ``patterns``, as targets without tensors.

    Args:
        model: the graph.
        names: what its names say.
        quantized: its quantized operators.
        patterns: shell patterns (``*.q_proj.weight``) over the names of the checkpoint's tensors.
        base: the checkpoint; where it is at hand, its tensors are found by their values too.
    """
    found: dict[str, Target] = {}

    def wanted(name: str) -> bool:
        return name not in found and any(fnmatchcase(name, pattern) for pattern in patterns)

    if base is not None:
        for name in base.names():
            if wanted(name) and len(base.shape(name)) > 1:
                for target in _by_values(model, names, base, name):
                    found[name] = target
    found |= {name: target for name, target in _by_names(model, names) if wanted(name)}
    for seat in quantized:
        for name in seat.names[:1]:
            if wanted(name):
                found[name] = _quantized(name, seat)
    return [found[name] for name in sorted(found)]


def _by_names(model: OnnxModel, names: Names) -> Iterator[tuple[str, Target]]:
    """Tensors that loreg's own note names; where there is none, those that an exporter's notes name."""
    note = Manifest.of(model.ir.metadata_props)
    known = names.manifest if note is not None else names.exporter
    for name, hits in known.items():
        for hit in hits:
            shape = shape_of(hit.value) if hit.window is None else hit.window.shape(shape_of(hit.value))
            if dtype_of(hit.value) not in FLOATING or len(shape) < 2 or hit.only_extends:
                continue
            known_axes = _axes(names, str(hit.value.name), name)
            if known_axes is None:
                continue
            read, axes = known_axes
            # An exporter that transposes a parameter renames it, and PyTorch's own matrices are (out, in).
            moved = hit.transposed if hit.transposed is not None else hit.rule != "initializer" and axes != _CHECKPOINT
            swapped = moved and read is Read.MATRIX
            yield name, _target(name, read, axes, shape, swapped=swapped)
            break


def _by_values(model: OnnxModel, names: Names, base: BaseModel, name: str) -> Iterator[Target]:
    for initializer, transposed in carriers_of(model, base.array(name)):
        axes = _axes(names, initializer, name)
        if axes is not None:
            yield _target(name, *axes, shape_of(model.initializers[initializer]), swapped=transposed)
            return


def _axes(names: Names, initializer: str, name: str) -> tuple[Read, Axes] | None:
    """How the operator of the tensor's own module reads it, where an exporter wrote that down; else the first one."""
    module = name.rpartition(".")[0]
    for site in sorted(names.sites[initializer], key=lambda site: not _is_of(site, module)):
        if site.read in _KINDS and site.axes is not None and "expert" not in site.axes:
            return site.read, site.axes
    return None


def _is_of(site: Site, module: str) -> bool:
    return site.scope is not None and f".{site.scope.module}".endswith(f".{module}")


def _target(name: str, read: Read, axes: Axes, shape: tuple[int, ...], *, swapped: bool) -> Target:
    layout = (*axes[:-2], axes[-1], axes[-2]) if swapped else axes
    return Target(name=name, kind=_KINDS[read], layout=layout, shape=swap(shape) if swapped else shape, tensors={})


def _quantized(name: str, seat: QuantizedSeat) -> Target:
    """What a quantizer holds under a weight's name was (in, out), and in the checkpoint the other way round."""
    is_linear = seat.kind is Kind.LINEAR and seat.transposed is not False
    layout, shape = (("in", "out"), (seat.width, seat.height))
    if is_linear:
        layout, shape = ("out", "in"), (seat.height, seat.width)
    return Target(name=name, kind=seat.kind, layout=layout, shape=shape, tensors={})


def _said(target: Target) -> str:
    return f"{target.kind} {'x'.join(target.layout)} {list(target.shape or ())}"
