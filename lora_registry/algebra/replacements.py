"""Values that several adapters put into one table: rows beside each other, where no two say the same row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.errors import UnsupportedError
from lora_registry.ops.arrays import from_array, to_array


def joined(targets: Sequence[Target]) -> Target:
    """One target that does what all of ``targets`` do to one base tensor, which replace values in it.

    Args:
        targets: one at least, of one name; a single one is returned as it is. Several are trained rows of one table.

    Raises:
        UnsupportedError: they replace the same values, or something else changes the table too, or the tables have
            other lengths, or the rows other widths or types.
    """
    first, *others = targets
    if not others:
        return first
    if any(target.kind is not Kind.TOKENS for target in targets):
        raise UnsupportedError(f"{first.name}: one adapter replaces its values, and another one changes them too")
    rows = [row for target in targets for row in target.rows]
    if twice := sorted({row for row in rows if rows.count(row) > 1}):
        shown = ", ".join(map(str, twice[:3])) + (", …" if len(twice) > 3 else "")
        raise UnsupportedError(f"{first.name}: several adapters replace its rows {shown}")
    for other in others:
        if (
            (first.layout, first.length) != (other.layout, other.length)
            or (first.shape and other.shape and first.shape != other.shape)
            or _row(first) != _row(other)
        ):
            raise UnsupportedError(f"{first.name}: the adapters replace rows of other tables")
    order = np.argsort(rows)
    values = np.concatenate([to_array(target.tensors["value"]) for target in targets])[order]
    return replace(
        next((target for target in targets if target.shape), first),
        tensors={"value": from_array(values)},
        rows=tuple(sorted(rows)),
        digests={},
    )


def _row(target: Target) -> tuple[str, tuple[int, ...]]:
    value = target.tensors["value"]
    return value.dtype, value.shape[1:]
