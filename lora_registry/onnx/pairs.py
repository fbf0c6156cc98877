"""Two ONNX models of one graph, seen as a checkpoint and a tuned one: the tensors that can be compared, by name.

The names are those of the checkpoint where the exporter left them, and the initializers' own where it did not; so is
the orientation: what an exporter transposed is shown as the checkpoint has it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import onnx_ir as ir

from lora_registry.adapter import Kind
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.onnx.builder import RULE
from lora_registry.onnx.external import byte_range
from lora_registry.onnx.hit import Hit
from lora_registry.onnx.model import OnnxModel, dtype_of, shape_of
from lora_registry.onnx.names import Names
from lora_registry.onnx.sites import Read, Site
from lora_registry.onnx.values import oriented, swap
from lora_registry.onnx.window import Window, windowed
from lora_registry.ops.arrays import Array
from lora_registry.text import listed

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Part:
    """What holds a tensor: an initializer, whether transposed, and which part of it."""

    value: ir.Value
    transposed: bool
    window: Window | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        whole = shape_of(self.value)
        part = whole if self.window is None else self.window.shape(whole)
        return swap(part) if self.transposed else part


class OnnxCheckpoint:
    """The initializers of a graph as a checkpoint would show them.

    A :class:`~lora_registry.ops.base_model.BaseModel`.

    Attributes:
        model: the graph.
        readings: name of a matrix or kernel to the kind of target that changes it, and its layout; of those for
            which the operators tell.
        quantized: names of tensors that operators read in quantized form: integers, scales and zero points.
        ties: empty; a tensor with two names is there twice.
    """

    def __init__(self, model: OnnxModel) -> None:
        self.model = model
        self.ties: dict[str, str] = {}
        names = Names(model)
        self._tensors = dict(sorted(_named(names).items()))
        self.readings: dict[str, tuple[Kind, tuple[str, ...]]] = {}
        self.quantized: set[str] = set()
        for name, part in self._tensors.items():
            sites = names.sites[str(part.value.name)]
            if any(site.read is Read.QUANTIZED for site in sites):
                self.quantized.add(name)
            if (reading := _reading(sites, part.transposed)) is not None:
                self.readings[name] = reading

    def names(self) -> tuple[str, ...]:
        """Names of the tensors, each with all of its names, in order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Axis lengths in the checkpoint's orientation."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """Name, as safetensors has it, of the element type; ONNX's where safetensors has none."""
        return dtype_of(self._tensors[name].value)

    def array(self, name: str) -> Array:
        """The elements in the checkpoint's orientation; a view of the mapped file where there is one."""
        part = self._tensors[name]
        return oriented(windowed(self.model.elements(part.value), part.window), part.transposed)

    def chunks(self, name: str) -> Iterator[bytes]:
        """The bytes of the initializer, of whatever type."""
        tensor = self._tensors[name].value.const_value
        if isinstance(tensor, ir.ExternalTensor):
            begin, end = byte_range(tensor)
            with self.model.data.path(tensor).open("rb") as stream:
                stream.seek(begin)
                for start in range(begin, end, _CHUNK):
                    yield stream.read(min(_CHUNK, end - start))
        elif tensor is not None:
            yield tensor.tobytes()

    def leave_out(self, names: Iterable[str]) -> None:
        """Go on without some tensors, which were compared already."""
        for name in names:
            del self._tensors[name]


def open_pair(base: Path, tuned: Path) -> tuple[OnnxCheckpoint, OnnxCheckpoint]:
    """Open two models whose graphs are the same but for the values of their initializers.

    Raises:
        NotFoundError, InvalidInputError: as :meth:`~lora_registry.onnx.model.OnnxModel.open`.
        InvalidInputError: the operators of the two are others, or a tensor is in one of them alone.
        UnsupportedError: quantized tensors differ, or such of a type that no checkpoint has.
    """
    first, second = OnnxCheckpoint(OnnxModel.open(base)), OnnxCheckpoint(OnnxModel.open(tuned))
    _require_one_graph(first.model, second.model)
    missing, added = sorted({*first.names()} - {*second.names()}), sorted({*second.names()} - {*first.names()})
    if missing or added:
        alone = [f"{listed(names)} only in {path}" for names, path in ((missing, base), (added, tuned)) if names]
        raise InvalidInputError(f"tensors without a counterpart: {'; '.join(alone)}")
    packed = {name for name in first.names() if {first.dtype(name), second.dtype(name)} - DTYPES.keys()}
    opaque = sorted(packed | first.quantized | second.quantized)
    if changed := [name for name in opaque if _differs(first, second, name)]:
        raise UnsupportedError(
            f"{listed(changed)}: quantized, and different; the rounding of a quantized weight hides what was added to "
            "it; extract from the models that were quantized"
        )
    for each in (first, second):
        each.leave_out(packed)
    return first, second


def _require_one_graph(base: OnnxModel, tuned: OnnxModel) -> None:
    """The same operators in the same order, in every graph."""
    operators = (
        [f"{node.domain}:{node.op_type}" for graph in model.ir.graphs() for node in graph] for model in (base, tuned)
    )
    for number, (one, other) in enumerate(zip_longest(*operators)):
        if one != other:
            at = f"node {number} is {_told(one)} in {base.path} and {_told(other)} in {tuned.path}"
            raise InvalidInputError(f"the two models are not of one graph: {at}")


def _told(operator: str | None) -> str:
    return "missing" if operator is None else operator.removeprefix(":")


def _named(names: Names) -> dict[str, _Part]:
    """Name of each tensor to the initializer, or the part of one, that holds it.

    Loreg's own note counts first, then what an exporter wrote about an initializer without a telling name, then the
    name that the initializer has. A name that would stand for two initializers stands for none.
    """
    found: dict[str, _Part] = {
        name: _Part(hits[0].value, bool(hits[0].transposed))
        for name, hits in names.manifest.items()
        if len(hits) == 1 and hits[0].window is None
    }
    noted = {str(part.value.name) for part in found.values()}
    claims: dict[str, list[tuple[str, Hit]]] = defaultdict(list)
    holders: Counter[str] = Counter()
    for tensor, hits in names.exporter.items():
        telling = [hit for hit in hits if not hit.only_extends]
        holders[tensor] = len({str(hit.value.name) for hit in telling})
        for hit in telling:
            if hit.rule != "initializer":
                claims[str(hit.value.name)].append((tensor, hit))
    for name, value in names.model.initializers.items():
        if name in noted:
            continue
        told = dict(_chosen(claims[name], shape_of(value)))
        told = {tensor: hit for tensor, hit in told.items() if holders[tensor] == 1 and tensor not in found}
        if not told or name in told:
            found.setdefault(name, _Part(value, transposed=False))
            continue
        for tensor, hit in told.items():
            transposed = _is_turned(names.sites[name]) if hit.transposed is None else hit.transposed
            found[tensor] = _Part(value, transposed, hit.window)
    return found


def _chosen(claims: list[tuple[str, Hit]], shape: tuple[int, ...]) -> list[tuple[str, Hit]]:
    """The names that count among those of one initializer: a builder's own before scopes, parts before the whole."""
    claims = [claim for claim in claims if claim[1].rule == RULE] or claims
    parts = [(tensor, hit) for tensor, hit in claims if hit.window is not None]
    windows = [hit.window for _, hit in parts if hit.window is not None]
    indices = [index for window in windows for index in window.indices().tolist()]
    if windows and sorted(indices) == list(range(shape[windows[0].axis])):
        return parts
    return [(tensor, hit) for tensor, hit in claims if hit.window is None]


def _is_turned(sites: tuple[Site, ...]) -> bool:
    """Whether a matrix under a made-up name was transposed: exporters rename it then, and PyTorch has (out, in)."""
    return any(site.read is Read.MATRIX and site.axes == ("in", "out") for site in sites)


def _reading(sites: tuple[Site, ...], transposed: bool) -> tuple[Kind, tuple[str, ...]] | None:
    """The kind of target and the layout, if all operators that read a tensor agree on it."""
    told = {_told_by(site, transposed) for site in sites}
    if len(told) > 1:  # tied: read as rows and as the matrix of the head
        told.discard((Kind.EMBEDDING, ("in", "out")))
    return told.pop() if len(told) == 1 else None


def _told_by(site: Site, transposed: bool) -> tuple[Kind, tuple[str, ...]] | None:
    axes = site.axes
    if site.read is Read.ROWS:
        return Kind.EMBEDDING, ("in", "out")
    if site.read is Read.KERNEL and axes is not None and _groups(site) == 1:
        return Kind.CONV, axes
    if site.read is Read.MATRIX and axes is not None and len(axes) == 2:
        return Kind.LINEAR, axes[::-1] if transposed else axes
    return None


def _groups(site: Site) -> int:
    attribute = site.path[-1][0].attributes.get("group")
    return int(attribute.as_int()) if attribute is not None else 1


def _differs(first: OnnxCheckpoint, second: OnnxCheckpoint, name: str) -> bool:
    if (first.dtype(name), first.shape(name)) != (second.dtype(name), second.shape(name)):
        return True
    return any(one != other for one, other in zip_longest(first.chunks(name), second.chunks(name)))
