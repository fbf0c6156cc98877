"""The arithmetic of one block: elements of the base in, elements of the output and the sums of its fidelity out.

A sum is computed in a type wider than that of the output and rounded once: in float32 for types of 8 and 16 bits,
in float64 for F32 and F64. So the result of a small change is, but for a few elements in a hundred thousand that are
one unit in the last place off, the correctly rounded one, whatever the machine's BLAS. A change as large as the
weights has more of these (spec/merging.md, section 5): float32 is only so much wider than 16 bits.

Everything happens in buffers that a worker has for all of its blocks. The casts between bfloat16 and float32
are those of ml_dtypes, which let go of the interpreter lock and beat the same by integer arithmetic (measured:
0.33 ns an element for the rounding against 0.52).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from lora_registry.adapter import Kind
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError
from lora_registry.merge.plan import Part
from lora_registry.ops.arrays import Array, numpy_dtype, round_to, to_array
from lora_registry.ops.change import RowMerger, refuse_nonfinite
from lora_registry.ops.fidelity import Scratch, Sums, sums

Read = Callable[[int, int], Array]
"""Gives the elements of a base tensor from one number to another, in a new array."""


class Room:
    """The buffers of one worker, for blocks of at most ``elements`` elements.

    Args:
        elements: the length of the largest block.
    """

    def __init__(self, elements: int) -> None:
        self._elements = elements
        self._buffers: dict[np.dtype[Any], tuple[list[Array], Scratch]] = {}

    def of(self, dtype: np.dtype[Any]) -> tuple[list[Array], Scratch]:
        """Three buffers of ``dtype`` and scratch for the figures; made when they are first asked for."""
        if dtype not in self._buffers:
            made = [np.empty(self._elements, dtype) for _ in range(3)]
            self._buffers[dtype] = made, Scratch.of(self._elements, dtype)
        return self._buffers[dtype]


class BlockKernel(Protocol):
    """What makes the blocks of one tensor; several threads at a time may ask for some."""

    def run(self, start: int, stop: int, read: Array, out: Array, room: Room) -> Sums | None:
        """Make the elements ``start`` to ``stop``; see :meth:`Kernel.run`."""


class Kernel:
    """What is done with every block of one tensor that is not simply copied, on the CPU.

    Args:
        part: the tensor, as the plan has it.
        dtype: its element type in the base; that of the adapter's value where the base has none.
        read: for a change that needs a pass over the whole tensor before the first block.
    """

    def __init__(self, part: Part, dtype: str, read: Read) -> None:
        self._part = part
        self._read_as = numpy_dtype(dtype)
        self._write_as = numpy_dtype(part.entry.dtype)
        self._floating = DTYPES[part.entry.dtype].floating
        self._value: Array | None = None
        self._mergers: list[RowMerger] = []
        if part.changes and part.changes[0].kind is Kind.FULL:
            self._value = to_array(part.changes[0].tensors["value"]).reshape(-1)
            wide = self._value.dtype == np.float64
        elif part.changes:
            wide = np.float64 in (self._read_as, self._write_as) or self._write_as == np.float32
        else:
            wide = self._read_as == np.float64
        compute: type[np.floating[Any]] = np.float64 if wide else np.float32
        self._compute: np.dtype[Any] = np.dtype(compute)
        if part.changes and self._value is None:
            self._mergers = [RowMerger(target, part.entry.shape, compute) for target in part.changes]
            if self._mergers[0].needs_norms:
                self._mergers[0].measure_norms(read)

    def run(self, start: int, stop: int, read: Array, out: Array, room: Room) -> Sums | None:
        """Make the elements ``start`` to ``stop``.

        Args:
            start: number of the first element.
            stop: one past the last.
            read: the bytes of these elements in the base; empty where it has no such tensor.
            out: where their bytes in the output go.
            room: buffers.

        Returns:
            The sums of the fidelity; None where there is no change, or nothing that it could be compared with.

        Raises:
            InvalidInputError: a result is not finite although the base is, or not in the range of the output's type.
        """
        written = out.view(self._write_as)
        if not self._floating:
            assert self._value is not None, "only values replace integers"
            written[:] = self._value[start:stop]
            return None
        (first, second, third), scratch = room.of(self._compute)
        elements = stop - start
        before = self._widened(read.view(self._read_as), first[:elements]) if read.size else None
        product = len(self._mergers) == 1 and self._mergers[0].is_product
        if product:
            assert before is not None
            wanted, spare = second[:elements], third[:elements]
            self._mergers[0].write_change(start, stop, scratch.delta)
            np.add(before, scratch.delta[:elements], out=wanted)
        else:
            wanted, spare = self._wanted(start, stop, before, second[:elements], third[:elements])
        self._round(wanted, written)
        kept = self._widened(written, spare)
        if before is None or not self._part.changes:
            self._check_range(wanted, kept)
            return None
        result = sums(before, wanted, kept, scratch, has_delta=product)
        if not np.isfinite(result.error):
            if product:  # the other ways have looked already, and know which value stands for the base
                refuse_nonfinite(self._part.name, start, before, wanted)
            self._check_range(wanted, kept)
        return result

    def _widened(self, array: Array, buffer: Array) -> Array:
        """``array`` in the type of the computation: itself, or a copy in ``buffer``."""
        if array.dtype == self._compute:
            return array
        np.copyto(buffer, array, casting="unsafe")
        return buffer

    def _wanted(self, start: int, stop: int, before: Array | None, buffer: Array, spare: Array) -> tuple[Array, Array]:
        """The elements as they shall be, unrounded, and the buffer that is still free."""
        if self._value is not None:
            after = self._widened(self._value[start:stop], buffer)
            refuse_nonfinite(self._part.name, start, before, after)
            return after, spare
        assert before is not None
        after = before
        for merger in self._mergers:  # sums, whose order does not matter; the plan has seen to that
            after = merger.merge(start, stop, after, buffer)
            buffer, spare = spare, buffer
        return after, buffer

    def _round(self, wanted: Array, written: Array) -> None:
        """Round once, to nearest, ties to even."""
        if wanted.dtype == np.float64 and self._write_as not in (np.float64, np.float32):
            written[:] = round_to(wanted, self._part.entry.dtype)  # which does not round twice
        else:
            np.copyto(written, wanted, casting="unsafe")

    def _check_range(self, wanted: Array, kept: Array) -> None:
        """Refuse what is no number any more in the output's type; it is not written."""
        fits = np.isfinite(kept)
        if not fits.all() and not np.array_equal(fits, np.isfinite(wanted)):
            raise InvalidInputError(
                f"{self._part.name}: the merged weight is beyond the range of {self._part.entry.dtype}; "
                "choose another dtype"
            )
