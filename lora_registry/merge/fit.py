"""Does an adapter belong on a base model? Asked, and answered in full, before a byte is written.

Names, shapes, element types and fingerprints are compared. Two square tensors of which one is transposed
cannot be told apart by any of these except the fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InconclusiveError, InvalidInputError, UnsupportedError
from lora_registry.findings import Finding, Severity
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import ORIENTED, target_fingerprint
from lora_registry.ops.prefix import Prefix, uniform_prefix
from lora_registry.quantized.agreement import agrees, said_of
from lora_registry.quantized.weight import Scheme
from lora_registry.text import plural

_QUANTIZED_BESIDE = ("absmax", "quant_state", "qweight", "weight_packed", "weight_scale", "weight_scale_inv", "SCB")
"""Tensors that bitsandbytes, GPTQ, AWQ, compressed-tensors and FP8 checkpoints keep beside a packed weight."""

_UNPROVED = frozenset({"M-004", "M-005", "M-010"})
"""What keeps a fit from being exact."""

_SUGGESTED = 10  # names that are compared with all of a base's names to find a close one


class Verdict(StrEnum):
    """The answer, from best to worst."""

    EXACT = "exact"
    SAME_SHAPES = "same-shapes"
    DOES_NOT_FIT = "does-not-fit"


@dataclass(frozen=True, slots=True)
class Fit:
    """How an adapter fits a base.

    Attributes:
        verdict: ``exact`` if every target has a fingerprint and every fingerprint is that of its tensor;
            ``same-shapes`` if everything has its place, but the weights differ or nothing says that they
            are the same; ``does-not-fit`` if anything has no place.
        matches: target name to the name of the base tensor it changes. The latter may be tied to another.
        new: names of full targets for which the base has no tensor, and the caller allowed that.
        findings: everything that was noticed, errors and notes.
    """

    verdict: Verdict
    matches: Mapping[str, str]
    new: tuple[str, ...]
    findings: tuple[Finding, ...]

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
    scheme: Scheme | None = None,
    computed: Callable[[str], bool] = lambda name: False,
) -> Fit:
    """Find the base tensor of every target and compare what can be compared.

    A target's name is the base tensor's, or differs from it by one prefix that all targets share, or is
    tied to a stored tensor. Findings: M-001 no such tensor, M-002 another shape, M-003 a quantized tensor,
    M-004 other weights, M-005 no fingerprint, M-006 a prefix, M-007 two targets for one tensor, M-008 a new
    tensor, M-009 a view and the base's own, M-010 fingerprints that a quantized base cannot have.

    Args:
        adapter: what is to be merged.
        base: into what.
        allow_new: a full target may bring a tensor that the base does not have, such as a classifier.
        scheme: how the base is quantized, where it is seen as the values that it stands for.
        computed: whether the tensor of that name is one of these values; its fingerprint proves nothing.
    """
    stored_names = frozenset(base.names())
    names = stored_names | frozenset(base.ties)
    findings: list[Finding] = []
    matches, missing = _match(adapter, names, findings)
    new = tuple(target.name for target in missing if target.kind is Kind.FULL and allow_new)
    findings += [_new(name) for name in new]
    findings += _unmatched([target for target in missing if target.name not in new], names)
    findings += _collisions(matches)
    findings += _view(adapter, scheme)
    compared = dequantized = 0
    for target in adapter:
        if target.name in matches:
            matched = matches[target.name]
            stored = matched if matched in stored_names else base.ties[matched]
            problem = _compare(target, stored, base)
            findings += [problem] if problem else []
            if problem is None and target.fingerprint is not None:
                compared += 1
                if computed(stored):
                    dequantized += 1
                    continue
                findings += _weights(target, stored, base)
    silent = len(matches) - compared
    if silent and not any(finding.severity is Severity.ERROR for finding in findings):
        what = "no target" if not compared else f"{compared} of {len(matches)} targets"
        message = f"{what} carries a fingerprint, so that nothing proves that these are the weights it was trained on"
        findings.append(Finding("M-005", "", message, Severity.NOTE))
    if dequantized:
        message = (
            f"the fingerprints of {plural(dequantized, 'target')} are of unquantized weights, and the base holds "
            f"{scheme}, so that nothing proves that it was made from these"
        )
        findings.append(Finding("M-010", "", message, Severity.NOTE))
    return Fit(_verdict(findings), matches, new, tuple(findings))


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


def _unmatched(missing: list[Target], names: frozenset[str]) -> Iterator[Finding]:
    modules = {name.rpartition(".")[0] for name in names if name.endswith(_QUANTIZED_BESIDE)}
    for position, target in enumerate(missing):
        module = target.name.rpartition(".")[0]
        if any(packed == module or packed.endswith("." + module) for packed in modules):
            yield Finding("M-003", target.name, "the base holds it quantized; merge into the unquantized base")
            continue
        alike = [name for name in names if name.rpartition(".")[2] == target.name.rpartition(".")[2]]
        close = get_close_matches(target.name, alike, n=1) if position < _SUGGESTED else []
        hint = f"; did you mean {close[0]}" if close else ""
        extra = ", and new tensors were not allowed" if target.kind is Kind.FULL else ""
        yield Finding("M-001", target.name, f"the base has no such tensor{extra}{hint}")


def _collisions(matches: Mapping[str, str]) -> Iterator[Finding]:
    taken: dict[str, str] = {}
    for name, stored in matches.items():
        if stored in taken:
            yield Finding("M-007", name, f"changes {stored}, which {taken[stored]} changes already")
        taken.setdefault(stored, name)


def _compare(target: Target, stored: str, base: BaseModel) -> Finding | None:
    """The first thing that keeps ``target`` from changing the base tensor ``stored``."""
    dtype, shape = base.dtype(stored), base.shape(stored)
    known = DTYPES.get(dtype)
    if target.kind is not Kind.FULL and (known is None or not known.is_wide_float):
        return Finding(
            "M-003", target.name, f"the base holds it quantized, as {dtype}; merge into the unquantized base"
        )
    if target.shape is None:
        width = target.tensors["value"].shape[-1]
        if len(shape) != 2 or shape[1] != width or target.rows[-1] >= shape[0]:
            return Finding(
                "M-002", target.name, f"the base has shape {list(shape)}; rows to {target.rows[-1]} of {width} columns"
            )
        return None
    if shape == target.shape:
        return _compare_elements(target, dtype)
    message = f"the base has shape {list(shape)}, the target {list(target.shape)}"
    if len(shape) == 2 and shape == target.shape[::-1] and target.kind in ORIENTED:
        message += f"; the base stores it transposed, the target says {list(target.layout)}"
    elif len(shape) == 2 and shape[1:] == target.shape[1:]:
        message += "; a vocabulary of another size is not supported: resize the base's embeddings first"
    return Finding("M-002", target.name, message)


def _compare_elements(target: Target, dtype: str) -> Finding | None:
    """A value that replaces a tensor has its type, or is rounded from one float type of 16 bits or more to another."""
    if target.kind is not Kind.FULL:
        return None
    own = target.tensors["value"].dtype
    wide = all(name in DTYPES and DTYPES[name].is_wide_float for name in (own, dtype))
    if own == dtype or wide:
        return None
    return Finding("M-003", target.name, f"the base holds {dtype}, the adapter's value is {own}")


def _weights(target: Target, stored: str, base: BaseModel) -> list[Finding]:
    actual = target_fingerprint(target, base.array(stored))
    if actual == target.fingerprint:
        return []
    return [Finding("M-004", target.name, "the base has other weights than the adapter was made for", Severity.WARNING)]
