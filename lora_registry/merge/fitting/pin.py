"""Pinning: an adapter that states which base tensors it was made for, by their fingerprints."""

from __future__ import annotations

from pathlib import Path

from lora_registry.adapter import Adapter
from lora_registry.errors import UnsupportedError
from lora_registry.format.edit import edited
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.fitting.against import hold_against
from lora_registry.merge.fitting.stacked import stack_fingerprint
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.progress import Counted, Progress


def pin(adapter: Adapter, base: str | Path, *, progress: Progress | None = None) -> Adapter:
    """The adapter with the fingerprint of every tensor that it changes, taken from ``base``.

    Fingerprints that the adapter has already must be those of ``base``: a pin is never moved in silence.

    Args:
        adapter: what is pinned.
        base: the model that it was trained on, a checkpoint or ONNX.
        progress: called with the number of targets done and of all.

    Raises:
        InvalidInputError: the adapter does not fit ``base``, or is pinned to other weights.
        UnsupportedError: the adapter says that it needs an editor who knows more; or ``base`` is quantized.
    """
    fitted, model = hold_against(adapter, Path(base))
    pinned = any(target.fingerprint is not None for target in adapter)
    fitted.require(f"adapter and {base}", exact=pinned and any(finding.rule == "M-004" for finding in fitted.findings))
    if isinstance(model, Checkpoint) and any(model.is_computed(place) for place in fitted.matches.values()):
        raise UnsupportedError(
            f"{base} is quantized ({model.scheme}), and fingerprints are those of unquantized weights: name the base "
            "that it was made from"
        )
    assert model is not None  # where not every target was found, the adapter does not fit
    stored = frozenset(model.names())
    prints = {}
    hashed = Counted(progress, len(fitted.matches))
    for target in adapter:
        name = fitted.matches[target.name]
        if name in fitted.stacks:
            prints[target.name] = stack_fingerprint(fitted.stacks[name], model)
        else:
            prints[target.name] = target_fingerprint(target, model.array(name if name in stored else model.ties[name]))
        hashed.advance(1)
    return edited(adapter, targets=adapter.with_fingerprints(prints).targets)
