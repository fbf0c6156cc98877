"""Targets whose effect goes beyond one layer's matrices: rules A-010 to A-012.

Told by kind where the kind says it, and by the names that modules have in transformers 5 elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lora_registry.adapter import Adapter, Kind, Target
from lora_registry.audit.rules import found
from lora_registry.findings import Finding
from lora_registry.text import listed, plural

_VOCABULARY = re.compile(
    r"(?:^|\.)(?:embed_tokens|embed_in|embed_out|wte|word_embeddings?|tok_embeddings|token_embedding|lm_head"
    r"|output_projection)\.|^(?:.*\.)?shared\.weight$"
)
"""Modules with one row for each token of the vocabulary; ``shared`` is T5's."""

_ROUTER = re.compile(r"(?:^|\.)(?:router\.|(?:gate|shared_expert_gate)\.(?:weight|bias)$)")
"""Modules that choose experts. ``gate_proj`` is a part of an expert and none of these."""


def check_reach(adapter: Adapter) -> Iterator[Finding]:
    """A-010 to A-012, each once for the adapter."""
    yield from _whole(adapter)
    vocabulary = [target.name for target in adapter if _of_vocabulary(target)]
    if vocabulary:
        yield found("A-011", "targets", f"{plural(len(vocabulary), 'target')}: {listed(vocabulary)}")
    routers = [target.name for target in adapter if _ROUTER.search(target.name)]
    if routers:
        yield found("A-012", "targets", f"{plural(len(routers), 'target')}: {listed(routers)}")


def _whole(adapter: Adapter) -> Iterator[Finding]:
    """A-010. Rows for new tokens are meant to be stored whole and do not count."""
    sizes = {
        target.name: target.tensors["value"].nbytes
        for target in adapter
        if "value" in target.tensors and target.kind is not Kind.TOKENS
    }
    if sizes:
        total = sum(tensor.nbytes for target in adapter for tensor in target.tensors.values())
        stored = sum(sizes.values())
        names = sorted(sizes, key=lambda name: -sizes[name])
        share = 100.0 * stored / total if total else 0.0
        what = f"{stored} bytes in {plural(len(sizes), 'tensor')}, {share:.3g} % of the adapter"
        message = f"{what}, largest first: {listed(names)}"
        yield found("A-010", "targets", message)


def _of_vocabulary(target: Target) -> bool:
    return target.kind in (Kind.EMBEDDING, Kind.TOKENS) or _VOCABULARY.search(target.name) is not None
