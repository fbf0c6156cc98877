"""Which initializers hold the tensors that an adapter changes: the resolver chain.

For each target the rules of :mod:`lora_registry.onnx.names` make their claims; rules that fire must agree,
which means that what they point at holds the same values. Where no name helps, the values of the base
checkpoint do (:mod:`lora_registry.onnx.values`); where the checkpoint is at hand, it also confirms every
claim. A target that stays without an answer, or gets two, is refused: nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from lora_registry.adapter import Kind, Target
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.findings import Finding
from lora_registry.onnx.model import OnnxModel, dtype_of, shape_of
from lora_registry.onnx.names import Hit, Names
from lora_registry.onnx.prefix import Prefix, uniform_prefix
from lora_registry.onnx.resolution import Carrier, Resolution, TiedPolicy
from lora_registry.onnx.sites import Read, Site
from lora_registry.onnx.values import Checkpoint, carriers_of, cast, oriented, same_values, swap
from lora_registry.ops.arrays import Array

NOT_FOUND, DISAGREE, QUANTIZED, OPAQUE, SHAPE = "O-001", "O-002", "O-003", "O-004", "O-005"
AMBIGUOUS, TIED, COMPUTED, OTHER_VALUES = "O-006", "O-007", "O-008", "O-009"

_UNSUPPORTED = frozenset({QUANTIZED, OPAQUE, COMPUTED})

VALUE_MATCH = "value-match"
"""Id of the rule that goes by the values of the base checkpoint."""

READS: Mapping[Kind, frozenset[Read]] = {
    Kind.LINEAR: frozenset({Read.MATRIX}),
    Kind.EXPERTS: frozenset({Read.MATRIX}),
    Kind.EMBEDDING: frozenset({Read.ROWS}),
    Kind.TOKENS: frozenset({Read.ROWS}),
    Kind.CONV: frozenset({Read.KERNEL}),
    Kind.BIAS: frozenset({Read.BIAS}),
    Kind.FULL: frozenset(Read) - {Read.QUANTIZED},
}
"""How the operators at a target's sites must read it."""


class _RefusalError(Exception):
    """One target cannot be resolved; becomes a finding."""

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(message)
        self.rule = rule


@dataclass(slots=True)
class _Candidate:
    """An initializer that at least one rule claims for a target."""

    value: ir.Value
    rules: set[str] = field(default_factory=set)
    told: set[bool] = field(default_factory=set)
    only_extends: bool = True
    mine: tuple[Site, ...] = ()
    transposed: bool = False

    @property
    def name(self) -> str:
        return str(self.value.name)


def resolve(
    model: OnnxModel,
    targets: Iterable[Target],
    *,
    base: Checkpoint | None = None,
    base_names: Mapping[str, str] | None = None,
    tied: TiedPolicy = "untie",
) -> tuple[Resolution, ...]:
    """Find the initializers and the sites of every target.

    Args:
        model: the graph.
        targets: what the adapter changes.
        base: the checkpoint that the graph was exported from, if at hand.
        base_names: target name to tensor name in ``base``; without it, the names differ by one prefix at most.
        tied: what a target means whose tensor is read both as rows and as a matrix.

    Raises:
        InvalidInputError: at least one target was not resolved; carries a finding for each.
        UnsupportedError: the same, where each is one that loreg understands and cannot patch.
        InconclusiveError: names fit under several prefixes.
    """
    targets = tuple(targets)
    resolver = _Resolver(model, targets, base, base_names, tied)
    resolutions: list[Resolution] = []
    findings: list[Finding] = []
    for target in targets:
        try:
            resolutions.append(resolver.resolve(target))
        except _RefusalError as refusal:
            findings.append(Finding(refusal.rule, target.name, str(refusal)))
    findings.extend(_claimed_twice(resolutions))
    if findings:
        refused = UnsupportedError if all(f.rule in _UNSUPPORTED for f in findings) else InvalidInputError
        raise refused.from_findings(f"{model.path}: {len(findings)} of {len(targets)} targets not resolved", findings)
    return tuple(resolutions)


def _claimed_twice(resolutions: Sequence[Resolution]) -> Iterator[Finding]:
    """Two targets that would change what one and the same operator reads: a graph in which modules were merged."""
    owners: dict[tuple[ir.Node, int], str] = {}
    for resolution in resolutions:
        for carrier in resolution.carriers:
            for site in carrier.sites:
                owner = owners.setdefault(site.path[-1], resolution.target.name) if site.path else None
                if owner not in (None, resolution.target.name):
                    yield Finding(AMBIGUOUS, resolution.target.name, f"{site.node} computes for {owner!r} as well")


class _Resolver:
    """The chain, for one graph and one adapter."""

    def __init__(
        self,
        model: OnnxModel,
        targets: Sequence[Target],
        base: Checkpoint | None,
        base_names: Mapping[str, str] | None,
        tied: TiedPolicy,
    ) -> None:
        self._model = model
        self._names = Names(model)
        self._base = base
        self._tied = tied
        wanted = [target.name for target in targets]
        self._by_manifest = uniform_prefix(wanted, self._names.manifest)
        self._by_exporter = uniform_prefix(wanted, self._names.known)
        self._base_exported = uniform_prefix(base.names(), self._names.exporter) if base is not None else None
        self._base_names = base_names if base_names is not None else _names_in(base, wanted)

    def resolve(self, target: Target) -> Resolution:
        exported = self._exported(target.name)
        module = exported.rpartition(".")[0] if exported is not None else None
        if exported is not None and exported in self._names.computed:
            constants = ", ".join(self._names.computed[exported])
            raise _RefusalError(
                COMPUTED, f"the exporter folded it with other tensors into {constants}; export without optimizing"
            )
        candidates = self._claims(target, exported)
        searched = not candidates
        if searched:
            candidates = self._search(target)
        if not candidates:
            return self._missing(target, exported, module)
        self._choose_sites(target, candidates, module, searched)
        acting = [candidate for candidate in candidates if candidate.mine]
        for candidate in acting:
            candidate.transposed = self._orientation(target, candidate)
        acting = self._agreeing(acting)
        self._confirm(target, acting)
        is_tied, carriers = self._carriers(target, acting, candidates)
        rules = sorted(set().union(*(candidate.rules for candidate in acting)))
        return Resolution(target, carriers, (), tuple(rules), is_tied)

    def _exported(self, name: str) -> str | None:
        """What the exporter calls the tensor ``name``; a name that the prefix does not cover stands for itself."""
        known = self._names.known
        prefixed = self._by_exporter.apply(name) if self._by_exporter is not None else None
        return name if prefixed not in known and name in known else prefixed

    # -- claims ---------------------------------------------------------------------------------------------

    def _claims(self, target: Target, exported: str | None) -> list[_Candidate]:
        """The initializers that the naming rules claim for ``target`` and whose shape it can have."""
        noted = self._by_manifest.apply(target.name) if self._by_manifest is not None else None
        hits: list[Hit] = []
        if noted is not None:
            hits += self._names.manifest.get(noted, [])
        if exported is not None:
            hits += self._names.exporter.get(exported, [])
        candidates: dict[str, _Candidate] = {}
        for hit in hits:
            if not _may_hold(target, hit.value):
                continue
            candidate = candidates.setdefault(str(hit.value.name), _Candidate(hit.value))
            candidate.rules.add(hit.rule)
            candidate.only_extends &= hit.only_extends
            if hit.transposed is not None:
                candidate.told.add(hit.transposed)
        if all(candidate.only_extends for candidate in candidates.values()):
            return []
        return list(candidates.values())

    def _search(self, target: Target) -> list[_Candidate]:
        """The initializers that hold the values of the base checkpoint's tensor."""
        name = self._base_names.get(target.name)
        if self._base is None or name is None:
            return []
        wanted = self._base.array(name)
        found = [
            _Candidate(self._model.initializers[initializer], {VALUE_MATCH}, only_extends=False)
            for initializer, _ in carriers_of(self._model, wanted)
        ]
        return [candidate for candidate in found if _may_hold(target, candidate.value)]

    def _sole_in_manifest(self, acting: Sequence[_Candidate]) -> bool:
        """Whether loreg's own note says that the one initializer in question holds this tensor and no other."""
        return len(acting) == 1 and self._names.tenants[acting[0].name] == 1

    def _twins(self, target: Target) -> list[str]:
        """Other tensors of the base checkpoint that hold the same values as the target's, and are not tied to it."""
        assert self._base is not None
        name, ties = self._base_names[target.name], self._base.ties
        array, shape = self._base.array(name), self._base.shape(name)
        twins = []
        for other in self._base.names():
            if name in (other, ties.get(other)) or ties.get(name) == other:
                continue
            if self._base.shape(other) not in (shape, swap(shape)):
                continue
            held = self._base.array(other)
            if any(same_values(oriented(held, swapped), array) for swapped in (False, True)):
                twins.append(other)
        return twins

    def _unique_in_base(self, target: Target) -> bool:
        """Whether the base checkpoint shows that no other of its tensors holds the same values."""
        return self._base is not None and target.name in self._base_names and not self._twins(target)

    def _missing(self, target: Target, exported: str | None, module: str | None) -> Resolution:
        """No initializer: a bias that can be put back, or a refusal that says why."""
        gemms = tuple(self._names.open_gemms.get(module, ())) if module is not None else ()
        is_bias = target.name.rpartition(".")[2] == "bias" and target.kind in (Kind.BIAS, Kind.FULL)
        if is_bias and gemms and all(gemm.inputs[1] in self._model.initializers.values() for gemm in gemms):
            return Resolution(target, (), gemms, ("node-scope",), tied=False)
        operator = self._names.quantized.get(exported) if exported is not None else None
        if operator is not None:
            raise _RefusalError(
                QUANTIZED,
                f"it is quantised ({operator}), where a change would be lost in rounding; merge into a float model",
            )
        present = sorted(self._names.quantized_operators)
        hint = f"; the graph holds quantised operators: {', '.join(present)}" if present else ""
        if self._base is None:
            hint += "; the base checkpoint would let it be found by its values"
        raise _RefusalError(NOT_FOUND, f"no initializer holds it{hint}")

    # -- sites ----------------------------------------------------------------------------------------------

    def _choose_sites(
        self, target: Target, candidates: Sequence[_Candidate], module: str | None, searched: bool
    ) -> None:
        """Decide which uses of the candidates are the target's: those of its module, or the only ones there are."""
        reads = READS[target.kind]
        for candidate in candidates:
            sites = self._names.sites[candidate.name]
            if module is not None:
                candidate.mine = tuple(site for site in sites if site.scope is not None and site.scope.is_of(module))
        if any(candidate.mine for candidate in candidates):
            for candidate in candidates:
                self._require_reads(target, candidate.mine, reads)
            return
        for candidate in candidates:
            candidate.mine = tuple(site for site in self._names.sites[candidate.name] if site.read in reads)
        acting = [candidate for candidate in candidates if candidate.mine]
        if not acting:
            self._require_reads(target, [s for c in candidates for s in self._names.sites[c.name]], reads)
            raise _RefusalError(NOT_FOUND, f"nothing reads the initializer {candidates[0].name!r}")
        several = sum(len(candidate.mine) for candidate in acting) > 1 and not self._sole_in_manifest(acting)
        if several and self._tied != "both" and not self._unique_in_base(target):
            uses = ", ".join(site.node or site.operator for candidate in acting for site in candidate.mine)
            raise _RefusalError(AMBIGUOUS, f"several operators read it, and no note says which are its own: {uses}")
        if several and searched and not self._unique_in_base(target):
            raise _RefusalError(AMBIGUOUS, "the base checkpoint has other tensors with the same values")

    @staticmethod
    def _require_reads(target: Target, sites: Iterable[Site], reads: frozenset[Read]) -> None:
        for site in sites:
            if site.read is Read.QUANTIZED:
                raise _RefusalError(QUANTIZED, f"it is quantised ({site.operator}); merge into a float model")
            if site.read not in reads:
                raise _RefusalError(
                    OPAQUE,
                    f"{site.operator} ({site.node or 'unnamed'}) reads it as {site.read}, not as {target.kind}",
                )

    # -- orientation ----------------------------------------------------------------------------------------

    def _orientation(self, target: Target, candidate: _Candidate) -> bool:
        """Whether the candidate holds the target's tensor with its two last axes swapped."""
        shape = shape_of(candidate.value)
        if len(shape) < 2:
            told = {False}
        elif target.kind is Kind.FULL:
            told = set(candidate.told) or self._orientation_of_replacement(target, candidate)
        else:
            told = candidate.told | {_transposed(target, site) for site in candidate.mine}
        if len(told) != 1:
            raise _RefusalError(DISAGREE, f"{candidate.name!r} is said to hold it both as stored and transposed")
        transposed = told.pop()
        actual = swap(shape) if transposed else shape
        if target.shape is not None and actual != target.shape:
            raise _RefusalError(
                SHAPE,
                f"{candidate.name!r} is read as {list(actual)}; the adapter changes {list(target.shape)}",
            )
        if target.kind is Kind.TOKENS and target.rows and target.rows[-1] >= actual[0]:
            raise _RefusalError(
                SHAPE, f"{candidate.name!r} has {actual[0]} rows; the adapter replaces row {target.rows[-1]}"
            )
        return transposed

    def _orientation_of_replacement(self, target: Target, candidate: _Candidate) -> set[bool]:
        """A full replacement has no axes of its own: the shape decides, then the name, then the values."""
        shape = shape_of(candidate.value)
        if shape != swap(shape):
            return {shape != target.shape}
        if "initializer" in candidate.rules:
            return {False}  # exporters rename what they transpose
        name = self._base_names.get(target.name)
        if self._base is not None and name is not None:
            wanted = cast(self._base.array(name), dtype_of(candidate.value))
            held = self._model.values(candidate.value)
            return {swapped for swapped in (False, True) if same_values(oriented(held, swapped), wanted)}
        raise _RefusalError(
            OPAQUE, f"{candidate.name!r} is square, and nothing says whether it was transposed; give the base"
        )

    # -- agreement ------------------------------------------------------------------------------------------

    def _values(self, candidate: _Candidate) -> Array:
        return oriented(self._model.values(candidate.value), candidate.transposed)

    def _agreeing(self, acting: Sequence[_Candidate]) -> list[_Candidate]:
        """The candidates with the values that every rule that fired points at."""
        groups: list[list[_Candidate]] = []
        for candidate in acting:
            for group in groups:
                if same_values(self._values(group[0]), self._values(candidate)):
                    group.append(candidate)
                    break
            else:
                groups.append([candidate])
        fired = set().union(*(candidate.rules for candidate in acting if not candidate.only_extends))
        agreed = [
            group
            for group in groups
            if fired <= set().union(*(candidate.rules for candidate in group if not candidate.only_extends))
        ]
        if len(agreed) != 1:
            claims = ", ".join(f"{'/'.join(sorted(c.rules))} says {c.name!r}" for c in acting)
            raise _RefusalError(DISAGREE, f"the rules do not agree: {claims}")
        return agreed[0]

    def _confirm(self, target: Target, acting: Sequence[_Candidate]) -> None:
        """Where the base checkpoint is at hand, its values must be those of the initializer."""
        name = self._base_names.get(target.name)
        if self._base is None or name is None:
            return
        candidate = acting[0]
        if not same_values(self._values(candidate), cast(self._base.array(name), dtype_of(candidate.value))):
            raise _RefusalError(
                OTHER_VALUES, f"{candidate.name!r} does not hold the values of {name!r} of the base checkpoint"
            )
        candidate.rules.add(VALUE_MATCH)
        for twin in self._twins(target):
            exported = self._base_exported.apply(twin) if self._base_exported is not None else None
            if exported not in self._names.exporter:
                raise _RefusalError(
                    AMBIGUOUS, f"{twin!r} has the same values and is not in the graph: an optimizer made one of the two"
                )

    # -- ties -----------------------------------------------------------------------------------------------

    def _carriers(
        self, target: Target, acting: Sequence[_Candidate], candidates: Sequence[_Candidate]
    ) -> tuple[bool, tuple[Carrier, ...]]:
        """Apply the policy for tied tensors, and say which initializers have uses that must not change."""
        chosen = {candidate.name: (candidate.transposed, set(candidate.mine)) for candidate in acting}
        other_role = self._other_role(target, acting, candidates)
        if other_role and self._tied == "error":
            raise _RefusalError(TIED, f"{acting[0].name!r} is tied: it is read as embedding rows and as a matrix")
        if self._tied == "both":
            for name, site in other_role:
                transposed, sites = chosen.setdefault(name, (_tied_transposed(site), set()))
                if transposed != _tied_transposed(site):
                    raise _RefusalError(DISAGREE, f"{name!r} is tied with two orientations")
                sites.add(site)
        carriers = []
        for name, (transposed, sites) in chosen.items():
            ordered = tuple(site for site in self._names.sites[name] if site in sites)
            shared = len(ordered) < len(self._names.sites[name])
            carriers.append(Carrier(self._model.initializers[name], transposed, ordered, shared))
        return bool(other_role), tuple(carriers)

    def _other_role(
        self, target: Target, acting: Sequence[_Candidate], candidates: Sequence[_Candidate]
    ) -> list[tuple[str, Site]]:
        """Sites that read the same tensor in its other role: rows where the target is a matrix, and the reverse."""
        roles = {site.read for candidate in acting for site in candidate.mine}
        other = {Read.ROWS: Read.MATRIX, Read.MATRIX: Read.ROWS}.get(next(iter(roles))) if len(roles) == 1 else None
        if other is None or len(shape_of(acting[0].value)) != 2:
            return []
        mine = {(candidate.name, site) for candidate in acting for site in candidate.mine}
        values = self._values(acting[0])
        found: list[tuple[str, Site]] = []
        for name, sites in self._names.sites.items():
            value = self._model.initializers[name]
            if shape_of(value) not in (values.shape, swap(values.shape)):
                continue
            for site in sites:
                if site.read is other and (name, site) not in mine:
                    held = oriented(self._model.values(value), _tied_transposed(site))
                    if same_values(held, values):
                        found.append((name, site))
        return found


def _names_in(base: Checkpoint | None, wanted: Sequence[str]) -> dict[str, str]:
    """Target name to tensor name in ``base``, under one prefix."""
    if base is None:
        return {}
    stored = {**{name: name for name in base.names()}, **base.ties}
    prefix = uniform_prefix(wanted, stored) or Prefix()
    pairs = ((name, prefix.apply(name)) for name in wanted)
    return {name: stored[found] for name, found in pairs if found is not None and found in stored}


def _may_hold(target: Target, value: ir.Value) -> bool:
    """Whether an initializer's shape allows it to hold the target's tensor in some orientation."""
    if target.shape is None:
        rows = target.tensors["value"].shape
        return len(shape_of(value)) == 2 and shape_of(value)[1] == rows[1]
    return shape_of(value) in (target.shape, swap(target.shape))


def _transposed(target: Target, site: Site) -> bool:
    """Orientation by the operator at ``site``, compared with the layout that the target declares."""
    if site.axes == target.layout:
        return False
    if site.axes is not None and (*site.axes[:-2], site.axes[-1], site.axes[-2]) == target.layout:
        return True
    read = "unknown axes" if site.axes is None else "x".join(site.axes)
    raise _RefusalError(OPAQUE, f"{site.operator} reads {read}; the adapter's layout is {'x'.join(target.layout)}")


def _tied_transposed(site: Site) -> bool:
    """Whether an initializer at ``site`` is the transpose of an embedding table (vocabulary, width)."""
    return site.read is Read.MATRIX and site.axes == ("in", "out")
