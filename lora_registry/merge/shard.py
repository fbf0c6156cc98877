"""Writing one safetensors file of the output, block by block, in memory that does not grow with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError
from lora_registry.format.container import Container
from lora_registry.merge.base import Checkpoint
from lora_registry.merge.plan import FilePlan, Part
from lora_registry.merge.receipt import FileRecord, TensorRecord
from lora_registry.merge.stream import CHUNK, HashedCopy, copy_file
from lora_registry.ops.arrays import Array, as_bytes, numpy_dtype, round_to, to_array, widened
from lora_registry.ops.change import BLOCK, RowMerger, refuse_nonfinite
from lora_registry.ops.fidelity import Fidelity, Measurement
from lora_registry.progress import Counted


def write_file(
    plan: FilePlan, base: Checkpoint, path: Path, written: Counted
) -> tuple[FileRecord, FileRecord, list[TensorRecord]]:
    """Write one file of the output.

    Args:
        plan: what it holds.
        base: where the values come from.
        path: the file to make; its folder exists, the file does not.
        written: counts the bytes.

    Returns:
        The record of the base's file, that of the new one, and one for every changed tensor.

    Raises:
        InvalidInputError: a result is not finite, or does not fit into the output's dtype.
    """
    container = base.shards[plan.name]
    if plan.is_copy:
        record = copy_file(container.path, path)
        written.advance(record.size)
        return record, record, []
    records: list[TensorRecord] = []
    with path.open("xb") as stream:
        with HashedCopy(stream) as copy:
            copy.put(plan.head, _head(container))
            written.advance(len(plan.head))
            for part in plan.parts:
                _write_part(part, base, copy, container if part.name in container.entries else None, records)
                written.advance(part.entry.end - part.entry.begin)
        stream.flush()
        os.fsync(stream.fileno())
    read = Digest(copy.read.hexdigest()) if plan.follows_base else Digest.of_file(container.path)
    size = container.path.stat().st_size
    return (
        FileRecord(plan.name, size, read),
        FileRecord(plan.name, plan.size, Digest(copy.written.hexdigest())),
        records,
    )


def _head(container: Container) -> bytes:
    return len(container.header_bytes).to_bytes(8, "little") + container.header_bytes


def _write_part(
    part: Part, base: Checkpoint, copy: HashedCopy, container: Container | None, records: list[TensorRecord]
) -> None:
    """Pass on, convert or change one tensor; ``container`` is the file it comes from if that is the one being read."""
    if part.source is None:
        assert part.changes[0].kind is Kind.FULL
        value = to_array(part.changes[0].tensors["value"]).reshape(-1)
        for start, stop in _ranges(value.size):
            refuse_nonfinite(part.name, start, None, widened(value[start:stop]))
            copy.put(as_bytes(_rounded(part.name, value[start:stop], part.entry.dtype)), None)
        records.append(_record(part, part.changes[0], None))
        return
    weight = base.array(part.source).reshape(-1)
    if not part.changes and weight.dtype == numpy_dtype(part.entry.dtype):
        raw = as_bytes(weight)
        for start in range(0, len(raw), CHUNK):
            chunk = raw[start : start + CHUNK]
            copy.put(chunk, chunk if container is not None else None)
        return
    measurement = Measurement()
    for start, stop, before, wanted in _changed(part, weight, base.shape(part.source)):
        written = _rounded(part.name, wanted, part.entry.dtype)
        copy.put(as_bytes(written), as_bytes(weight[start:stop]) if container is not None else None)
        if part.changes and DTYPES[part.entry.dtype].floating:
            measurement.add(before, wanted, written)
    fidelity = measurement.result() if DTYPES[part.entry.dtype].floating else None
    records += [_record(part, target, fidelity) for target in part.changes]


def _record(part: Part, target: Target, fidelity: Fidelity | None) -> TensorRecord:
    return TensorRecord(part.name, target.name, target.kind, part.entry.dtype, fidelity)


def _rounded(name: str, wanted: Array, dtype: str) -> Array:
    """``wanted`` in the output's type; what no longer is a number there is refused, not written."""
    written = round_to(wanted, dtype)
    if DTYPES[dtype].floating and written is not wanted:
        fits = np.isfinite(widened(written))  # ml_dtypes' own isfinite is five times slower
        if not fits.all() and not np.array_equal(fits, np.isfinite(wanted)):
            raise InvalidInputError(f"{name}: the merged weight is beyond the range of {dtype}; choose another dtype")
    return written


def _ranges(size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size, BLOCK):
        yield start, min(start + BLOCK, size)


def _changed(part: Part, weight: Array, shape: tuple[int, ...]) -> Iterator[tuple[int, int, Array, Array]]:
    """Every block of the tensor: its range, its elements as they were, widened, and as they shall be, unrounded."""
    if not part.changes or part.changes[0].kind is Kind.FULL:
        source = to_array(part.changes[0].tensors["value"]).reshape(-1) if part.changes else weight
        for start, stop in _ranges(weight.size):
            before, after = widened(weight[start:stop]), widened(source[start:stop])
            if part.changes:
                refuse_nonfinite(part.name, start, before, after)
            yield start, stop, before, after
        return
    compute = np.float64 if weight.dtype == np.float64 else np.float32
    first, *others = [RowMerger(target, shape, compute) for target in part.changes]
    if first.needs_norms:
        first.measure_norms(lambda start, stop: weight[start:stop])
    for start, stop in first.blocks():
        before = widened(weight[start:stop])
        block = first.merge(start, stop, before)
        for other in others:  # sums, whose order does not matter; the plan has seen to that
            block = other.merge(start, stop, block)
        yield start, stop, before, block
