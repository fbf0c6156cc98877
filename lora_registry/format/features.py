"""What a file may need beyond the core of the format, and which parts of a document need it (spec section 12).

A feature is named in ``requires.read``, so that a reader that does not have it refuses the file instead of
computing something else. Those here are defined in ``spec/extensions.md``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from lora_registry.adapter import Adapter, Kind, Target

GATE = "gate"

KIND_FEATURES: Mapping[Kind, str] = {Kind.LOHA: "loha", Kind.LOKR: "lokr", Kind.SPARSE: "sparse"}
"""The kinds that are no part of the core, and the feature that brings each."""

FEATURES: frozenset[str] = frozenset({GATE, *KIND_FEATURES.values()})
"""What ``requires`` may name for this reader, and for this editor."""


def content_features(targets: Iterable[Target], gate: Sequence[int]) -> frozenset[str]:
    """The features that targets and a gate need by being what they are."""
    needed = {KIND_FEATURES[target.kind] for target in targets if target.kind in KIND_FEATURES}
    return frozenset(needed | ({GATE} if gate else set()))


def required_features(adapter: Adapter) -> list[str]:
    """What ``requires.read`` of ``adapter`` says, sorted: what its content needs, and what it names besides."""
    return sorted(adapter.requires_read | content_features(adapter, adapter.gate))
