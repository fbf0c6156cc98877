"""What a merge will write, tensor by tensor; made, and refused, before a byte is written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod

from lora_registry.adapter import Kind, Target
from lora_registry.dtypes import DTYPES
from lora_registry.errors import ConflictError, InconclusiveError, UnsupportedError
from lora_registry.format.container import Entry, encode_header
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.ties import is_shared, may_be_tied, second_ties
from lora_registry.merge.dtype_rules import DtypeRules
from lora_registry.merge.fitting.fit import Change, Fit
from lora_registry.ops.mergeable import check_together
from lora_registry.ops.tied import TiedPolicy, policy_for


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of the output.

    Attributes:
        name: its name.
        entry: its place in the output file.
        source: name of the base tensor whose values it starts from; None where the base has none.
        changes: the targets that change it, in order; usually one or none.
        weight: name of the quantized weight that the tensor is a part of, where that is changed and quantized again.
    """

    name: str
    entry: Entry
    source: str | None
    changes: tuple[Target, ...]
    weight: str | None = None


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One safetensors file of the output.

    Attributes:
        name: its name.
        origin: name of the base's file that it is made from.
        head: what comes before the data: length and header.
        parts: the tensors, in the order of their bytes.
        follows_base: it has all bytes of the base's file, changed or not, in their order, so that one pass reads
            that file from its first byte to its last.
        same_layout: every tensor lies where it lies in the base's file.
    """

    name: str
    origin: str
    head: bytes
    parts: tuple[Part, ...]
    follows_base: bool
    same_layout: bool

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.head) + sum(part.entry.end - part.entry.begin for part in self.parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole merge.

    Attributes:
        files: the safetensors files of the output.
        added: names of tensors that the base's files do not hold, to the file that will.
        untied: whether the configuration must stop tying the embeddings.
        notes: decisions that the receipt must name.
    """

    files: tuple[FilePlan, ...]
    added: Mapping[str, str]
    untied: bool
    notes: tuple[str, ...]


class _Changes:
    """Which output tensor each target changes, once ties are decided."""

    def __init__(self, base: Checkpoint, tied: TiedPolicy) -> None:
        self.by_tensor: dict[str, list[Target]] = defaultdict(list)
        self.added: dict[str, str] = {}
        self.untied = False
        self.notes: list[str] = []
        self._base = base
        self._tied = tied
        self._outputs = {source: output for output, source in base.ties.items()}
        self._alike: frozenset[str] = frozenset()

    def take_all(self, changes: Iterable[Change], new: Collection[str]) -> None:
        """Decide where every change goes; those of tensors that are ``new`` go to these."""
        whole = {change.place: change for change in changes if change.target.kind is Kind.FULL}
        self._alike = frozenset(
            output
            for output, source in self._base.ties.items()
            if {output, source} <= whole.keys() and _same_value(whole[output].target, whole[source].target)
        )
        for change in changes:
            if change.place in new:
                self.by_tensor[change.place].append(change.target)
            elif change.place not in self._alike:  # of two that are alike, that of the input embedding is enough
                self.take(change.target, change.place)

    def take(self, target: Target, matched: str) -> None:
        """Decide where the change of ``target``, whose base tensor is called ``matched``, goes."""
        source = self._base.ties.get(matched, matched)
        output = self._outputs.get(source)
        tied = "both" if output in self._alike else policy_for(target, self._tied)
        if tied == "untie" and is_shared(source):
            raise UnsupportedError(
                f"{target.name}: encoder, decoder and head use {source} under names of their own, and a checkpoint "
                "cannot say that only one of them changes; choose to change all of them (tied: both)"
            )
        if output is None:
            table = target.kind in (Kind.EMBEDDING, Kind.FULL, Kind.SPARSE)
            if table and tied != "both" and may_be_tied(self._base, self._base.config, matched):
                raise InconclusiveError(
                    f"{target.name}: this model has a head, stores none of the shape of {matched}, and loreg does not "
                    "know whether it is tied to it; choose to change every use (tied: both)"
                )
            self.by_tensor[matched].append(target)
        elif tied == "both":
            self._share(target, source, output)
        elif tied == "error":
            raise ConflictError(
                f"{target.name} is tied: {output} and {source} share their values, and the adapter changes one of "
                "them; choose to untie them or to change both"
            )
        else:
            self._untie(target, matched, source, output)

    def _share(self, target: Target, source: str, output: str) -> None:
        self.by_tensor[source].append(target)
        if output in self._base.places:
            self.by_tensor[output].append(target)
        why = "as asked"
        if target.kind is Kind.TOKENS:
            why = "trained tokens are shared by tied embeddings"
        elif output in self._alike:
            why = "the adapter has the same values for both"
        self.notes.append(f"{target.name} changes both {source} and {output}, which stay tied: {why}")

    def _untie(self, target: Target, matched: str, source: str, output: str) -> None:
        self.by_tensor[matched].append(target)
        if not self.untied:
            self.added.update(second_ties(self._base.places))
            self.notes.append(f"{output} and {source} are no longer tied: each has its own values")
        self.untied = True
        if output not in self._base.places:
            self.added[output] = source

    def check(self) -> None:
        """Several targets may meet in one tensor only where their changes are sums, which have no order."""
        for name, targets in self.by_tensor.items():
            check_together(name, targets)
        if self.untied and any(target.kind is Kind.TOKENS for targets in self.by_tensor.values() for target in targets):
            raise UnsupportedError("trained tokens keep the embeddings tied, and another target unties them")


def _same_value(one: Target, other: Target) -> bool:
    first, second = one.tensors["value"], other.tensors["value"]
    return (first.dtype, first.shape) == (second.dtype, second.shape) and first.digest() == second.digest()


def make_plan(
    base: Checkpoint,
    fitted: Fit,
    *,
    dtypes: DtypeRules = DtypeRules(),  # noqa: B008 - frozen
    tied: TiedPolicy = "untie",
) -> Plan:
    """Decide what every file of the output holds.

    Args:
        base: what is changed, with room for the rows that are added to it.
        fitted: the changes, all of which can be merged (:mod:`lora_registry.ops.mergeable`); must not be
            ``does-not-fit``.
        dtypes: element types in the output; without a rule, each tensor keeps its own.
        tied: what happens to tied tensors.

    Raises:
        ConflictError: a tied tensor is changed and ``tied`` is ``error``.
        InconclusiveError: nobody knows whether a changed embedding is the head as well.
        UnsupportedError: changes meet that cannot be combined.
        UsageError: a rule of ``dtypes`` is for no tensor.
    """
    changes = _Changes(base, tied)
    changes.take_all(fitted.changes, fitted.new)
    changes.check()
    last = max(base.shards)
    added = {name: base.places[source] for name, source in changes.added.items()}
    added.update(dict.fromkeys(fitted.new, last))
    files = []
    for file in base.shards:
        sources: dict[str, str | None] = {name: name for name in base.names_in(file)}
        sources.update({name: changes.added.get(name) for name, place in added.items() if place == file})
        files.append(_plan_file(base, file, sources, changes.by_tensor, dtypes))
    dtypes.require_use(
        (part.name, bool(part.changes))
        for file in files
        for part in file.parts
        if DTYPES[part.entry.dtype].is_wide_float
    )
    return Plan(tuple(files), added, changes.untied, tuple(changes.notes))


def _plan_file(
    base: Checkpoint,
    file: str,
    sources: Mapping[str, str | None],
    changes: Mapping[str, list[Target]],
    dtypes: DtypeRules,
) -> FilePlan:
    container = base.shards[file]
    specs = {}
    for name, source in sources.items():
        if source is not None:
            own, shape = base.written_dtype(source), base.shape(source)
        else:
            value = changes[name][0].tensors["value"]
            own, shape = value.dtype, value.shape
        specs[name] = (dtypes.dtype(name, own, touched=bool(changes.get(name))), shape)
    entries = lay_out(specs)
    same = entries == container.entries and not any(base.is_computed(name) for name in entries)
    head = base.head(file) if same else encode_header(entries, container.metadata)
    parts = tuple(Part(name, entry, sources[name], tuple(changes.get(name, ()))) for name, entry in entries.items())
    stored = sorted(container.entries, key=lambda name: (container.entries[name].begin, container.entries[name].end))
    kept = [name for name in entries if name in container.entries and not base.is_computed(name)]
    follows = kept == stored and bool(stored) and not base.is_pickled
    return FilePlan(base.written_name(file), file, head, parts, follows, same)


def lay_out(specs: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, Entry]:
    """Tensors one after the other, in the given order if each then is aligned to its elements, else wide ones first.

    Readers of safetensors make views of the bytes, and some refuse a view that is not aligned.
    """
    for order in (list(specs), sorted(specs, key=lambda name: -DTYPES[specs[name][0]].size)):
        entries: dict[str, Entry] = {}
        position, aligned = 0, True
        for name in order:
            dtype, shape = specs[name]
            size = DTYPES[dtype].size
            aligned = aligned and position % size == 0
            entries[name] = Entry(dtype, shape, position, position + prod(shape) * size)
            position = entries[name].end
        if aligned:
            break
    return entries
