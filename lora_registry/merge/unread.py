"""Bases that are quantized by a method that loreg does not read: what of them can be merged all the same."""

from __future__ import annotations

from lora_registry.errors import InconclusiveError, UnsupportedError
from lora_registry.findings import Severity
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.fitting.fit import Fit
from lora_registry.merge.plan import Plan
from lora_registry.quantized.recognition import readable_methods, unread_method
from lora_registry.text import listed


def require_plain(base: Checkpoint, fitted: Fit) -> None:
    """Go on only if everything that an adapter changes is there as plain numbers.

    Args:
        base: as it is stored.
        fitted: how the adapter fits it.

    Raises:
        UnsupportedError: the base is quantized by a method that is not read, and a target changes a weight that is
            not there, has another shape or no floating-point type, or has other tensors beside it than a bias.
    """
    method = unread_method(base.config)
    if method is None:
        return
    wrong = {finding.place for finding in fitted.findings if finding.severity is Severity.ERROR and finding.place}
    wrong |= {change.origin for change in fitted.changes if _has_more(change.place, base)}
    if wrong:
        raise UnsupportedError(
            f"{base.path} is quantized by {method!r}, which loreg does not read, and {listed(sorted(wrong), 2)} of it "
            f"is not there as plain numbers; loreg reads {readable_methods()}; dequantize the base with the program "
            "that quantized it, or merge into the unquantized one"
        )


def unread_note(base: Checkpoint) -> str | None:
    """What a receipt has to say of a base whose method is not read, and into which a merge went all the same."""
    method = unread_method(base.config)
    if method is None:
        return None
    return (
        f"the base is quantized by {method!r}, which loreg does not read: every weight that the adapter changes is "
        "stored there as plain numbers, and was taken as it is"
    )


def require_readable(merged: Checkpoint, base: Checkpoint) -> None:
    """Go on only if the tensors of ``base`` are in ``merged`` in a form that can be held against them.

    Raises:
        InconclusiveError: ``merged`` is quantized by a method that is not read, and lacks tensors of the base.
    """
    method = unread_method(merged.config)
    if method is None or unread_method(base.config) == method or set(base.names()) <= set(merged.names()):
        return
    raise InconclusiveError(
        f"{merged.path} is quantized by {method!r}, which loreg does not read, so that nothing can be said of it; "
        f"reads {readable_methods()}"
    )


def require_kept(base: Checkpoint, plan: Plan) -> None:
    """Refuse to convert what no target changes: scales, and who knows what, that loreg cannot tell from weights.

    Raises:
        UnsupportedError: the base is quantized by a method that is not read, and a tensor would get another type.
    """
    method = unread_method(base.config)
    if method is None:
        return
    for file in plan.files:
        for part in file.parts:
            if not part.changes and part.source is not None and part.entry.dtype != base.dtype(part.source):
                raise UnsupportedError(
                    f"{base.path} is quantized by {method!r}, which loreg does not read: {part.name} stays as it is; "
                    "give a type to what the adapter changes (touched=DTYPE)"
                )


def _has_more(place: str, base: Checkpoint) -> bool:
    """Whether other tensors than a bias belong to a weight: scales, codes, or what else its numbers are made with."""
    module, _, last = place.rpartition(".")
    own = f"{module}." if last == "weight" else place
    return any(name.startswith(own) and name not in (place, f"{module}.bias") for name in base.names())
