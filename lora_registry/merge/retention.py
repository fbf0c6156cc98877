"""How much of the changes survived the output's element type, and what to say or do where that is little."""

from __future__ import annotations

from collections.abc import Iterable

from lora_registry.errors import IntegrityError, UsageError
from lora_registry.merge.receipt import TensorRecord
from lora_registry.text import plural


def check_share(least: float | None) -> None:
    """Refuse a share that is none.

    Raises:
        UsageError: ``least`` is not from 0 to 1.
    """
    if least is not None and not 0 <= least <= 1:
        raise UsageError(f"a share of a change is from 0 to 1, not {least}")


def require_retention(records: Iterable[TensorRecord], least: float | None) -> None:
    """Refuse a merge that keeps too little.

    Args:
        records: the tensors that were changed.
        least: share of every change that must survive; None is content with any.

    Raises:
        IntegrityError: a tensor keeps less; the worst is named, the others are counted.
    """
    if least is None:
        return
    measured = [record for record in records if record.fidelity is not None]
    kept = {record.name: (record.fidelity.retention, record) for record in measured if record.fidelity}
    below = sorted((share, name) for name, (share, _) in kept.items() if share < least)
    if not below:
        return
    share, name = below[0]
    worst = kept[name][1]
    advice = "Merge without --requantize" if worst.parts else "Keep them in float32 (dtype touched=F32)"
    raise IntegrityError(
        f"{plural(len(below), 'tensor')} of {len(kept)} keep less than {100 * least:.6g}% of the change, "
        f"{name} the least: {share:.1%} in {worst.dtype}; nothing was written. {advice}, or serve the adapter unmerged"
    )
