"""Does an adapter belong on a base model? Asked, and answered in full, before a byte is written.

Names, shapes, element types and fingerprints are compared. Two square tensors of which one is transposed
cannot be told apart by any of these except the fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from lora_registry.adapter import Adapter, Json, Kind, Target
from lora_registry.digest import Digest
from lora_registry.errors import InconclusiveError, InvalidInputError, UnsupportedError
from lora_registry.findings import Finding, Severity
from lora_registry.merge.fitting.comparison import compare
from lora_registry.merge.fitting.expert_names import ModelNames, model_names
from lora_registry.merge.fitting.growing import declares_growth, rows_brought, with_all_rows
from lora_registry.merge.fitting.missing import findings_of_missing
from lora_registry.merge.fitting.stacked import DIVISIBLE, Stack, fits_stack, spread, stack_fingerprint, stack_of
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.ops.prefix import Prefix, uniform_prefix
from lora_registry.quantized.agreement import agrees, said_of
from lora_registry.quantized.weight import Scheme
from lora_registry.text import plural

_UNPROVED = frozenset({"M-004", "M-005", "M-010"})
"""What keeps a fit from being exact."""

_NO_CONFIG: Mapping[str, Json] = MappingProxyType({})


class Verdict(StrEnum):
    """The answer, from best to worst."""

    EXACT = "exact"
    SAME_SHAPES = "same-shapes"
    DOES_NOT_FIT = "does-not-fit"


@dataclass(frozen=True, slots=True)
class Change:
    """What a target is for a base that stores its tensor in another form, and for most bases the target itself.

    Attributes:
        target: a change of one tensor, of the shape that the tensor has afterwards.
        place: name of that tensor in the base, which may be tied to another; its own where the base has none.
        origin: name of the adapter's target.
    """

    target: Target
    place: str
    origin: str


@dataclass(frozen=True, slots=True)
class Fit:
    """How an adapter fits a base.

    Attributes:
        verdict: ``exact`` if every target has a fingerprint and every fingerprint is that of its tensor;
            ``same-shapes`` if everything has its place, but the weights differ or nothing says that they
            are the same; ``does-not-fit`` if anything has no place.
        matches: target name to the name of the base tensor it changes, which may be tied to another, or to the name
            of the stack of which the base stores the parts.
        new: names of full targets for which the base has no tensor, and the caller allowed that.
        findings: everything that was noticed, errors and notes.
        changes: what is to be done to the base's own tensors.
        stacks: name of each stack that a target changes to the tensors that the base has in its place.
        grown: name of each table that gets more rows, as in ``matches``, to the number of rows it then has.
    """

    verdict: Verdict
    matches: Mapping[str, str]
    new: tuple[str, ...]
    findings: tuple[Finding, ...]
    changes: tuple[Change, ...] = ()
    stacks: Mapping[str, Stack] = field(default_factory=dict)
    grown: Mapping[str, int] = field(default_factory=dict)

    def require(self, what: str, *, exact: bool = False) -> None:
        """Go on only if the adapter fits.

        Args:
            what: adapter and base in words, for the message.
            exact: same shapes are not enough.

        Raises:
            UnsupportedError: the base is quantized where the adapter changes it.
            InvalidInputError: the adapter does not fit; or not exactly, where that is asked.
        """
        errors = [finding for finding in self.findings if finding.severity is Severity.ERROR]
        if exact and not errors and self.verdict is not Verdict.EXACT:
            errors = [finding for finding in self.findings if finding.rule in _UNPROVED]
        if errors:
            kind = UnsupportedError if all(finding.rule == "M-003" for finding in errors) else InvalidInputError
            raise kind.from_findings(f"{what} do not fit", errors)


def fit(
    adapter: Adapter,
    base: BaseModel,
    *,
    allow_new: bool = False,
    allow_growth: bool = False,
    config: Mapping[str, Json] = _NO_CONFIG,
    scheme: Scheme | None = None,
    computed: Callable[[str], bool] = lambda name: False,
) -> Fit:
    """Find the base tensor of every target and compare what can be compared.

    A target's name is the base tensor's, or what the model calls it where its checkpoint has another name, or
    differs from these by one prefix that all targets share, or is tied to a stored tensor. Findings: M-001 no such
    tensor, M-002 another shape, M-003 a quantized tensor, M-004 other weights, M-005 no fingerprint, M-006 a prefix,
    M-007 two targets for one tensor, M-008 a new tensor, M-009 a view and the base's own, M-010 fingerprints that a
    quantized base cannot have, M-011 a stack whose parts are stored, M-012 a table that grows.

    Args:
        adapter: what is to be merged.
        base: into what.
        allow_new: a full target may bring a tensor that the base does not have, such as a classifier.
        allow_growth: a target that brings a whole table may bring one with more rows than the base's.
        config: the configuration of the base, whose model type tells how its checkpoint names experts.
        scheme: how the base is quantized, where it is seen as the values that it stands for.
        computed: whether the tensor of that name is one of these values; its fingerprint proves nothing.
    """
    return _Fitting(adapter, base, config, computed).fit(allow_new, allow_growth, scheme)


class _Fitting:
    """One comparison of an adapter with a base, and what it has found so far."""

    def __init__(
        self, adapter: Adapter, base: BaseModel, config: Mapping[str, Json], computed: Callable[[str], bool]
    ) -> None:
        self._adapter = adapter
        self._base = base
        self._stored = frozenset(base.names())
        self._names = self._stored | frozenset(base.ties)
        direct = all(target.name in self._names for target in adapter)
        self._model = ModelNames({}, {}) if direct else model_names(self._stored, config)
        self._config = config
        self._computed = computed
        self._findings: list[Finding] = []
        self._changes: list[Change] = []
        self._stacks: dict[str, Stack] = {}
        self._grown: dict[str, int] = {}
        self._compared = self._dequantized = 0

    def fit(self, allow_new: bool, allow_growth: bool, scheme: Scheme | None) -> Fit:
        """Look at every target, and sum up."""
        adapter, findings = self._adapter, self._findings
        matches, missing = _match(
            adapter, self._names | self._model.stacks.keys() | self._model.renamed.keys(), findings
        )
        matches = {name: self._model.renamed.get(place, place) for name, place in matches.items()}
        new = tuple(target.name for target in missing if target.kind is Kind.FULL and allow_new)
        findings += [_new(name) for name in new]
        findings += findings_of_missing(
            [target for target in missing if target.name not in new], self._names, self._config
        )
        findings += _view(adapter, scheme)
        for target in adapter:
            place = matches.get(target.name)
            if place is None:
                self._changes += [Change(target, target.name, target.name)] if target.name in new else []
            elif place in self._names:
                self._single(target, place, growing=allow_growth or declares_growth(adapter))
            else:
                self._stacked(target, place)
        findings += self._told()
        findings += _collisions(self._changes)
        self._prove(len(matches), scheme)
        return Fit(
            verdict=_verdict(findings),
            matches=matches,
            new=new,
            findings=tuple(findings),
            changes=tuple(self._changes),
            stacks=self._stacks,
            grown=self._grown,
        )

    def _single(self, target: Target, place: str, *, growing: bool) -> None:
        """A target of a tensor that is stored, or tied to one that is."""
        stored = place if place in self._stored else self._base.ties[place]
        change, length = target, target.length
        if length is None and growing:
            length = rows_brought(target, self._base.shape(stored))
        problem = compare(target, stored, self._base, length)
        if length is not None and problem is None:
            rows = self._base.shape(stored)[0]
            change = with_all_rows(target, length)
            self._grown[place] = length
            self._findings.append(Finding("M-012", target.name, f"grows from {rows} rows to {length}", Severity.NOTE))
        self._changes.append(Change(change, place, target.name))
        self._findings += [problem] if problem else []
        # A value that is longer than the base's tensor was not made from it, so that no fingerprint can be its.
        own = length is None or target.length is not None
        if problem is None and target.fingerprint is not None and own:
            self._weights(target, [stored], lambda: target_fingerprint(target, self._base.array(stored)))

    def _stacked(self, target: Target, name: str) -> None:
        """A target of a stack of which the base stores the parts."""
        tensors = self._model.stacks[name]
        try:
            stack = self._stacks.setdefault(name, stack_of(tensors, self._base))
        except InvalidInputError as error:
            self._findings.append(Finding("M-002", target.name, str(error)))
            return
        if target.kind not in DIVISIBLE or not fits_stack(target, stack):
            shape = None if target.shape is None else list(target.shape)
            message = f"the base has experts that make {list(stack.shape)}, as expert out in; the target has "
            message += f"{shape}, as {' '.join(target.layout)}" if target.layout else f"{shape}, and is {target.kind}"
            self._findings.append(Finding("M-002", target.name, message))
            return
        for part in spread(target, stack):
            self._changes.append(Change(part, part.name, target.name))
            problem = compare(part, part.name, self._base, None)
            if problem is not None:
                self._findings.append(problem)
                return
        if target.fingerprint is not None:
            self._weights(target, stack.names, lambda: stack_fingerprint(stack, self._base))

    def _weights(self, target: Target, stored: Iterable[str], actual: Callable[[], Digest]) -> None:
        """Hold the fingerprint of a target against that of what the base stores."""
        self._compared += 1
        if any(self._computed(name) for name in stored):
            self._dequantized += 1
        elif actual() != target.fingerprint:
            message = "the base has other weights than the adapter was made for"
            self._findings.append(Finding("M-004", target.name, message, Severity.WARNING))

    def _told(self) -> Iterator[Finding]:
        """In one sentence, what is stored in the place of stacks."""
        names = [name for stack in self._stacks.values() for name in stack.names]
        if names:
            stacks = plural(len(self._stacks), "stack")
            message = f"the base stores {stacks} of experts as {plural(len(names), 'tensor')}, such as {names[0]}"
            yield Finding("M-011", "", message, Severity.NOTE)

    def _prove(self, matched: int, scheme: Scheme | None) -> None:
        """What no fingerprint proves."""
        if matched > self._compared and not any(finding.severity is Severity.ERROR for finding in self._findings):
            what = "no target" if not self._compared else f"{self._compared} of {matched} targets"
            message = (
                f"{what} carries a fingerprint, so that nothing proves that these are the weights it was trained on"
            )
            self._findings.append(Finding("M-005", "", message, Severity.NOTE))
        if self._dequantized:
            message = (
                f"the fingerprints of {plural(self._dequantized, 'target')} are of unquantized weights, and the base "
                f"holds {scheme}, so that nothing proves that it was made from these"
            )
            self._findings.append(Finding("M-010", "", message, Severity.NOTE))


def _verdict(findings: Collection[Finding]) -> Verdict:
    if any(finding.severity is Severity.ERROR for finding in findings):
        return Verdict.DOES_NOT_FIT
    unproved = any(finding.rule in _UNPROVED for finding in findings)
    return Verdict.SAME_SHAPES if unproved else Verdict.EXACT


def _match(adapter: Adapter, names: frozenset[str], findings: list[Finding]) -> tuple[dict[str, str], list[Target]]:
    """Target name to base name, and the targets that have none."""
    try:
        prefix = uniform_prefix([target.name for target in adapter], names) or Prefix()
    except InconclusiveError as error:
        findings.append(Finding("M-001", "", str(error)))
        prefix = Prefix()
    if prefix != Prefix():
        what = f"{prefix.added!r} is put before" if prefix.added else f"{prefix.dropped!r} is taken off"
        findings.append(Finding("M-006", "", f"{what} the names of the adapter", Severity.NOTE))
    matches, missing = {}, []
    for target in adapter:
        found = prefix.find(target.name, names)
        if found is None:
            missing.append(target)
        else:
            matches[target.name] = found
    return matches, missing


def _new(name: str) -> Finding:
    return Finding("M-008", name, "the base has no such tensor; it is added", Severity.NOTE)


def _view(adapter: Adapter, scheme: Scheme | None) -> list[Finding]:
    """P-049: the view that the adapter was trained on, and how the base is quantized."""
    view = adapter.base.view
    if scheme is not None:
        severity = Severity.NOTE if agrees(view, scheme) else Severity.WARNING
        return [Finding("M-009", "base/view", said_of(view, scheme), severity)]
    if not view:
        return []
    trained = view.get("scheme", "quantized")
    message = f"the adapter was trained on the {trained} view of its base, whose values differ from those stored here"
    return [Finding("M-009", "base/view", message, Severity.NOTE)]


def _collisions(changes: Collection[Change]) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    for change in changes:
        if change.place in taken:
            yield Finding(
                "M-007", change.origin, f"changes {change.place}, which {taken[change.place]} changes already"
            )
        taken.setdefault(change.place, change.origin)
