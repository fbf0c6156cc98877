"""What keeps a target from changing a tensor of the base: another shape, or elements that do not mix."""

from __future__ import annotations

from lora_registry.adapter import Kind, Target
from lora_registry.dtypes import DTYPES
from lora_registry.findings import Finding
from lora_registry.merge.fitting.growing import rows_brought
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import ORIENTED


def compare(target: Target, stored: str, base: BaseModel, length: int | None) -> Finding | None:
    """The first thing that keeps ``target`` from changing the base tensor ``stored``, or from growing it.

    ``length`` is the number of rows that the tensor then has; None where it keeps its own.
    """
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
    if shape == target.shape or (length is not None and target.length is None):
        return _compare_elements(target, dtype)
    message = f"the base has shape {list(shape)}, the target {list(target.shape)}"
    if len(shape) == 2 and shape == target.shape[::-1] and target.kind in ORIENTED:
        message += f"; the base stores it transposed, the target says {list(target.layout)}"
    elif len(shape) == 2 and shape[1:] == target.shape[1:]:
        message += _other_size(target, shape)
    return Finding("M-002", target.name, message)


def _other_size(target: Target, shape: tuple[int, ...]) -> str:
    """What to do about a table of another number of rows."""
    if rows_brought(target, shape) is not None:
        return "; --allow-growth takes it as a vocabulary that has grown"
    if target.length is not None:
        return f", which becomes {target.length} rows: this base is another one, or has grown already"
    return "; a vocabulary of another size needs a target that brings the whole table"


def _compare_elements(target: Target, dtype: str) -> Finding | None:
    """A value that replaces a tensor has its type, or is rounded from one float type of 16 bits or more to another."""
    if target.kind is not Kind.FULL:
        return None
    own = target.tensors["value"].dtype
    wide = all(name in DTYPES and DTYPES[name].is_wide_float for name in (own, dtype))
    if own == dtype or wide:
        return None
    return Finding("M-003", target.name, f"the base holds {dtype}, the adapter's value is {own}")
