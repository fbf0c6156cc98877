"""Pinning: an adapter that states which base tensors it was made for, by their fingerprints."""

from __future__ import annotations

from pathlib import Path

from lora_registry.adapter import Adapter
from lora_registry.format.edit import edited
from lora_registry.merge.base import open_base
from lora_registry.merge.fit import fit
from lora_registry.ops.fingerprint import fingerprint
from lora_registry.progress import Counted, Progress


def pin(adapter: Adapter, base: str | Path, *, progress: Progress | None = None) -> Adapter:
    """The adapter with the fingerprint of every tensor that it changes, taken from ``base``.

    Fingerprints that the adapter has already must be those of ``base``: a pin is never moved in silence.

    Args:
        adapter: what is pinned.
        base: the checkpoint that it was trained on.
        progress: called with the number of targets done and of all.

    Raises:
        InvalidInputError: the adapter does not fit ``base``, or is pinned to other weights.
        UnsupportedError: the adapter says that it needs an editor who knows more.
    """
    checkpoint = open_base(base)
    fits = fit(adapter, checkpoint)
    pinned = any(target.fingerprint is not None for target in adapter)
    fits.require(f"adapter and {base}", exact=pinned and any(finding.rule == "M-004" for finding in fits.findings))
    prints = {}
    hashed = Counted(progress, len(fits.matches))
    for target, name in fits.matches.items():
        prints[target] = fingerprint(checkpoint.array(checkpoint.ties.get(name, name)))
        hashed.advance(1)
    return edited(adapter, targets=adapter.with_fingerprints(prints).targets)
