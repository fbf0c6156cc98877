"""Which initializers hold the tensors that an adapter changes: the resolver chain.

For each target the rules of :mod:`lora_registry.onnx.names` make their claims; rules that fire must agree,
which means that what they point at holds the same values. Where no name helps, the values of the base
checkpoint do (:mod:`lora_registry.onnx.values`); where the checkpoint is at hand, it also confirms every
claim. A target that stays without an answer, or gets two, is refused: nothing is ever guessed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import onnx_ir as ir

from lora_registry.adapter import Kind, Target
from lora_registry.errors import ConflictError, InvalidInputError, UnsupportedError
from lora_registry.findings import Finding
from lora_registry.onnx.candidate import Candidate, agreeing, candidates_of
from lora_registry.onnx.evidence import Evidence
from lora_registry.onnx.hit import Hit
from lora_registry.onnx.model import OnnxModel, shape_of
from lora_registry.onnx.names import Names
from lora_registry.onnx.orientation import is_transposed, is_transposed_table
from lora_registry.onnx.refusal import (
    AMBIGUOUS,
    COMPUTED,
    DISAGREE,
    NOT_FOUND,
    OPAQUE,
    QUANTIZED,
    TIED,
    UNSUPPORTED,
    RefusalError,
)
from lora_registry.onnx.resolution import Carrier, Resolution
from lora_registry.onnx.sites import Read, Site
from lora_registry.onnx.values import oriented, same_values, swap
from lora_registry.onnx.window import Window
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.prefix import uniform_prefix
from lora_registry.ops.tied import TiedPolicy, policy_for

_ANY = frozenset(Read) - {Read.QUANTIZED}
_READS: Mapping[Kind, frozenset[Read]] = {
    Kind.EMBEDDING: frozenset({Read.ROWS}),
    Kind.TOKENS: frozenset({Read.ROWS}),
    Kind.BIAS: frozenset({Read.BIAS}),
    Kind.FULL: _ANY,
    Kind.SPARSE: _ANY,
}


def reads_of(target: Target) -> frozenset[Read]:
    """How the operators at a target's sites must read it: what has factors as the matrix or kernel that it is."""
    factored = Read.KERNEL if "k" in target.layout else Read.MATRIX
    return _READS.get(target.kind, frozenset({factored}))


def resolve(
    model: OnnxModel,
    targets: Iterable[Target],
    *,
    base: BaseModel | None = None,
    tied: TiedPolicy = "untie",
) -> tuple[Resolution, ...]:
    """Find the initializers and the sites of every target.

    Args:
        model: the graph.
        targets: what the adapter changes.
        base: the checkpoint that the graph was exported from, if at hand.
        tied: what a target means whose tensor is read both as rows and as a matrix.

    Raises:
        InvalidInputError: at least one target was not resolved; carries a finding for each.
        UnsupportedError: the same, where each is one that loreg understands and cannot patch.
        ConflictError: a tensor is tied, and ``tied`` is ``error``.
        InconclusiveError: names fit under several prefixes.
    """
    targets = tuple(targets)
    resolutions, findings = attempt(model, targets, base=base, tied=tied)
    summary = f"{model.path}: {len(findings)} of {len(targets)} targets not resolved"
    if findings and all(finding.rule == TIED for finding in findings):
        raise ConflictError(f"{summary}: {findings[0]}")
    if findings:
        refused = UnsupportedError if all(f.rule in UNSUPPORTED for f in findings) else InvalidInputError
        raise refused.from_findings(summary, findings)
    return resolutions


def attempt(
    model: OnnxModel,
    targets: Iterable[Target],
    *,
    base: BaseModel | None = None,
    tied: TiedPolicy = "untie",
) -> tuple[tuple[Resolution, ...], tuple[Finding, ...]]:
    """The same as :func:`resolve`, with what was not resolved as findings instead of an error.

    Raises:
        InconclusiveError: names fit under several prefixes.
    """
    targets = tuple(targets)
    resolver = _Resolver(model, targets, base, tied)
    resolutions: list[Resolution] = []
    findings: list[Finding] = []
    for target in targets:
        try:
            resolutions.append(resolver.resolve(target))
        except RefusalError as refusal:
            findings.append(Finding(refusal.rule, target.name, str(refusal)))
    findings.extend(_claimed_twice(resolutions))
    return tuple(resolutions), tuple(findings)


def _claimed_twice(resolutions: Sequence[Resolution]) -> Iterator[Finding]:
    """Two targets that would change what one and the same operator reads: a graph in which modules were merged."""
    owners: dict[tuple[ir.Node, int], list[tuple[str, Window | None]]] = defaultdict(list)
    for resolution in resolutions:
        name = resolution.target.name
        for carrier in resolution.carriers:
            window = carrier.window
            for site in carrier.sites:
                if not site.path:
                    continue
                for owner, taken in owners[site.path[-1]]:
                    beside = window is not None and taken is not None and not window.overlaps(taken)
                    if owner != name and not beside:
                        yield Finding(AMBIGUOUS, name, f"{site.node} computes for {owner!r} as well")
                owners[site.path[-1]].append((name, window))


class _Resolver:
    """The chain, for one graph and one adapter."""

    def __init__(self, model: OnnxModel, targets: Sequence[Target], base: BaseModel | None, tied: TiedPolicy) -> None:
        self._model = model
        self._names = Names(model)
        self._tied = tied
        wanted = [target.name for target in targets]
        self._by_manifest = uniform_prefix(wanted, self._names.manifest)
        self._by_exporter = uniform_prefix(wanted, self._names.known)
        self._evidence = Evidence(model, self._names, base, wanted) if base is not None else None

    def resolve(self, target: Target) -> Resolution:
        exported = self._exported(target.name)
        module = exported.rpartition(".")[0] if exported is not None else None
        if exported is not None and exported in self._names.computed:
            constants = ", ".join(self._names.computed[exported])
            raise RefusalError(
                COMPUTED, f"the exporter folded it with other tensors into {constants}; export without optimizing"
            )
        candidates = self._claims(target, exported)
        if not candidates and self._evidence is not None:
            candidates = self._evidence.search(target)
        if not candidates:
            return self._missing(target, exported, module)
        self._choose_sites(target, candidates, module)
        acting = [candidate for candidate in candidates if candidate.mine]
        known = self._evidence.tensor(target) if self._evidence is not None else None
        for candidate in acting:
            candidate.transposed = is_transposed(self._model, target, candidate, known)
        acting = agreeing(self._model, acting)
        if self._evidence is not None:
            self._evidence.confirm(target, acting[0])
        is_tied, carriers = self._carriers(target, acting) if acting[0].window is None else (False, self._parts(acting))
        rules = sorted(set().union(*(candidate.rules for candidate in acting)))
        return Resolution(target, carriers, (), tuple(rules), is_tied)

    def _exported(self, name: str) -> str | None:
        """What the exporter calls the tensor ``name``; a name that the prefix does not cover stands for itself."""
        known = self._names.known
        prefixed = self._by_exporter.apply(name) if self._by_exporter is not None else None
        return name if prefixed not in known and name in known else prefixed

    # -- claims ---------------------------------------------------------------------------------------------

    def _claims(self, target: Target, exported: str | None) -> list[Candidate]:
        """The initializers that the naming rules claim for ``target``."""
        noted = self._by_manifest.apply(target.name) if self._by_manifest is not None else None
        hits: list[Hit] = []
        if noted is not None:
            hits += self._names.manifest.get(noted, [])
        if exported is not None:
            hits += self._names.exporter.get(exported, [])
        return candidates_of(target, hits)

    def _sole_in_manifest(self, acting: Sequence[Candidate]) -> bool:
        """Whether loreg's own note says that the one initializer in question holds this tensor and no other."""
        return len(acting) == 1 and self._names.tenants[acting[0].name] == 1

    def _missing(self, target: Target, exported: str | None, module: str | None) -> Resolution:
        """No initializer: a bias that can be put back, or a refusal that says why."""
        gemms = tuple(self._names.open_gemms.get(module, ())) if module is not None else ()
        is_bias = target.name.rpartition(".")[2] == "bias" and target.kind in (Kind.BIAS, Kind.FULL, Kind.SPARSE)
        if is_bias and gemms and all(gemm.inputs[1] in self._model.initializers.values() for gemm in gemms):
            return Resolution(target, (), gemms, ("node-scope",), tied=False)
        operator = self._names.quantized.get(exported) if exported is not None else None
        if operator is not None:
            raise RefusalError(
                QUANTIZED,
                f"it is quantized ({operator}), where a change would be lost in rounding; merge into a float model",
            )
        present = sorted(self._names.quantized_operators)
        hint = f"; the graph holds quantized operators: {', '.join(present)}" if present else ""
        if self._evidence is None:
            hint += "; the base checkpoint would let it be found by its values"
        raise RefusalError(NOT_FOUND, f"no initializer holds it{hint}")

    # -- sites ----------------------------------------------------------------------------------------------

    def _choose_sites(self, target: Target, candidates: Sequence[Candidate], module: str | None) -> None:
        """Decide which uses of the candidates are the target's: those of its module, or the only ones there are."""
        reads = reads_of(target)
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
        self._require_own(target, [site for candidate in acting for site in candidate.mine], module)
        if not acting:
            self._require_reads(target, [s for c in candidates for s in self._names.sites[c.name]], reads)
            raise RefusalError(NOT_FOUND, f"nothing reads the initializer {candidates[0].name!r}")
        several = sum(len(candidate.mine) for candidate in acting) > 1 and not self._sole_in_manifest(acting)
        if several and not (self._evidence is not None and self._evidence.is_unique(target)):
            uses = ", ".join(site.node or site.operator for candidate in acting for site in candidate.mine)
            raise RefusalError(AMBIGUOUS, f"several operators read it, and no note says which are its own: {uses}")

    def _require_own(self, target: Target, sites: Iterable[Site], module: str | None) -> None:
        """Refuse rows that only another module looks up: that is the other name of a tied table."""
        if module is None or self._tied == "both":
            return
        rows = [site.scope.module for site in sites if site.read is Read.ROWS and site.scope is not None]
        others = [reader for reader in rows if reader and not f"{module}.".startswith(f"{reader}.")]
        if others and f"{module}.weight" in self._names.known:
            raise RefusalError(
                TIED, f"it is tied: only {others[0]!r} reads it; choose to change every use (tied: both)"
            )

    @staticmethod
    def _require_reads(target: Target, sites: Iterable[Site], reads: frozenset[Read]) -> None:
        for site in sites:
            if site.read is Read.QUANTIZED:
                raise RefusalError(QUANTIZED, f"it is quantized ({site.operator}); merge into a float model")
            if site.read not in reads:
                raise RefusalError(
                    OPAQUE,
                    f"{site.operator} ({site.node or 'unnamed'}) reads it as {site.read}, not as {target.kind}",
                )

    # -- ties -----------------------------------------------------------------------------------------------

    def _carriers(self, target: Target, acting: Sequence[Candidate]) -> tuple[bool, tuple[Carrier, ...]]:
        """Apply the policy for tied tensors, and say which initializers have uses that must not change."""
        tied = policy_for(target, self._tied)
        chosen = {candidate.name: (candidate.transposed, set(candidate.mine)) for candidate in acting}
        other_role = self._other_role(acting)
        if other_role and tied == "error":
            raise RefusalError(TIED, f"{acting[0].name!r} is tied: it is read as embedding rows and as a matrix")
        if tied == "both":
            for name, site in other_role:
                transposed, sites = chosen.setdefault(name, (is_transposed_table(site), set()))
                if transposed != is_transposed_table(site):
                    raise RefusalError(DISAGREE, f"{name!r} is tied with two orientations")
                sites.add(site)
        carriers = []
        for name, (transposed, sites) in chosen.items():
            ordered = tuple(site for site in self._names.sites[name] if site in sites)
            shared = len(ordered) < len(self._names.sites[name])
            carriers.append(Carrier(self._model.initializers[name], transposed, ordered, shared))
        return bool(other_role), tuple(carriers)

    def _parts(self, acting: Sequence[Candidate]) -> tuple[Carrier, ...]:
        """Parts of packed initializers; those are no tables, and tied to nothing."""
        return tuple(
            Carrier(
                candidate.value,
                candidate.transposed,
                candidate.mine,
                len(candidate.mine) < len(self._names.sites[candidate.name]),
                candidate.window,
            )
            for candidate in acting
        )

    def _other_role(self, acting: Sequence[Candidate]) -> list[tuple[str, Site]]:
        """Sites that read the same tensor in its other role: rows where the target is a matrix, and the reverse."""
        roles = {site.read for candidate in acting for site in candidate.mine}
        other = {Read.ROWS: Read.MATRIX, Read.MATRIX: Read.ROWS}.get(next(iter(roles))) if len(roles) == 1 else None
        if other is None or len(shape_of(acting[0].value)) != 2:
            return []
        mine = {(candidate.name, site) for candidate in acting for site in candidate.mine}
        values = acting[0].values(self._model)
        found: list[tuple[str, Site]] = []
        for name, sites in self._names.sites.items():
            value = self._model.initializers[name]
            if shape_of(value) not in (values.shape, swap(values.shape)):
                continue
            for site in sites:
                if site.read is other and (name, site) not in mine:
                    held = oriented(self._model.elements(value), is_transposed_table(site))
                    if same_values(held, values):
                        found.append((name, site))
        return found
