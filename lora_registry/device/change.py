"""What targets do to one tensor, run by run of its elements: :class:`~lora_registry.ops.change.RowMerger` on a device.

The formulas, the checks and the arrays that are computed once are those of ``ops``; what is done for every element is
done here, in the same order of operations and the same types.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

import numpy as np
import torch

from lora_registry.adapter import Kind
from lora_registry.device.elements import from_numpy, from_tensor
from lora_registry.device.matrices import on_device
from lora_registry.ops.change import RowMerger

Read = Callable[[int, int], torch.Tensor]
"""Gives the elements of W from one number to another, flat, on the device, of any float type."""


class Change:
    """The changes of one tensor.

    Args:
        mergers: one for each target that changes it; several only if all of them are sums.
        device: where W is.
    """

    def __init__(self, mergers: Sequence[RowMerger], device: torch.device) -> None:
        self._targets = [_Target(merger, device) for merger in mergers]
        self._product = len(mergers) == 1 and mergers[0].is_product
        self.dtype = torch.float64 if mergers[0].dtype == np.float64 else torch.float32
        self.needs_norms = mergers[0].needs_norms

    def measure_norms(self, read: Read, runs: Sequence[tuple[int, int]]) -> None:
        """Go over the whole tensor once to learn ‖W + ΔW‖ of every output column; where :attr:`needs_norms`.

        Args:
            read: gives W.
            runs: ranges of elements, whole rows each, that cover the tensor.
        """
        self._targets[0].measure_norms(read, runs, self.dtype)

    def write(
        self, start: int, before: torch.Tensor, wanted: torch.Tensor, delta: torch.Tensor, suspect: torch.Tensor
    ) -> None:
        """W' of a run of elements, unrounded.

        Args:
            start: number of the first element, the start of a row.
            before: W, flat, whole rows, of :attr:`dtype`.
            wanted: where W' goes; as ``before``.
            delta: where W' - W goes; as ``before``.
            suspect: float64 of no axes, to which is added what may not be used: norms beyond float64.
        """
        if self._product:
            self._targets[0].write_change(start, delta)
            torch.add(before, delta, out=wanted)
            return
        wanted.copy_(before)
        for target in self._targets:  # sums, whose order does not matter; the plan has seen to that
            target.apply(start, wanted, delta, suspect)
        torch.sub(wanted, before, out=delta)


class _Target:
    """One target; its arrays are on the device."""

    def __init__(self, merger: RowMerger, device: torch.device) -> None:
        target = merger.target
        self._columns = merger.columns
        self._matrix = None if merger.matrix is None else on_device(merger.matrix, device)
        self._delta = None if merger.delta is None else from_numpy(merger.delta.reshape(-1), device)
        self._positions = merger.index
        self._index = None if merger.index is None else from_numpy(merger.index, device)
        self._magnitude = None if merger.magnitude is None else from_numpy(merger.magnitude.reshape(-1), device)
        self._by_column = merger.needs_norms
        self._factor: torch.Tensor | None = None
        stands_for_base = merger.value is not None
        self._value = from_tensor(target.tensors["value"], device).reshape(-1) if stands_for_base else None
        self._rows = target.rows if target.kind is Kind.TOKENS else ()
        self._table = from_tensor(target.tensors["value"], device) if self._rows else None

    def write_change(self, start: int, out: torch.Tensor) -> None:
        """W' - W of whole rows, of a target that is a product."""
        assert self._matrix is not None
        self._matrix.write(start // self._columns, out.view(-1, self._columns))

    def measure_norms(self, read: Read, runs: Sequence[tuple[int, int]], dtype: torch.dtype) -> None:
        """See :meth:`Change.measure_norms`."""
        assert self._magnitude is not None
        squares = torch.zeros(self._columns, dtype=torch.float64, device=self._magnitude.device)
        for start, stop in runs:
            total = read(start, stop).to(dtype, copy=True)
            self._add(start, total, torch.empty_like(total))
            squares += total.view(-1, self._columns).double().square().sum(dim=0)
        self._factor = (self._magnitude / squares.sqrt()).to(dtype)

    def apply(self, start: int, total: torch.Tensor, scratch: torch.Tensor, suspect: torch.Tensor) -> None:
        """Change W, which ``total`` holds, in place."""
        if self._matrix is not None:
            self._add(start, total, scratch)
            if self._magnitude is not None:
                self._normalize(start, total, suspect)
        elif self._table is not None:
            self._replace_rows(start, total)
        elif self._delta is not None and self._index is not None:
            assert self._positions is not None
            first, last = (int(place) for place in np.searchsorted(self._positions, (start, start + len(total))))
            total.index_add_(0, self._index[first:last] - start, self._delta[first:last])
        else:
            assert self._delta is not None
            total += self._delta[start : start + len(total)]

    def _add(self, start: int, total: torch.Tensor, scratch: torch.Tensor) -> None:
        if self._value is not None:
            total.copy_(self._value[start : start + len(total)])
        self.write_change(start, scratch)
        total += scratch

    def _normalize(self, start: int, total: torch.Tensor, suspect: torch.Tensor) -> None:
        """Give every output its magnitude: m ∘ total / ‖total‖."""
        assert self._magnitude is not None
        table = total.view(-1, self._columns)
        if self._by_column:
            assert self._factor is not None, "measure_norms() comes first"
            table *= self._factor
            suspect += (self._factor == 0).logical_and_(self._magnitude != 0).sum()
            return
        norms = table.double().square().sum(dim=1).sqrt_()
        suspect += norms.isinf().sum()
        rows = slice(start // self._columns, start // self._columns + len(table))
        table *= (self._magnitude[rows] / norms).to(total.dtype)[:, None]

    def _replace_rows(self, start: int, total: torch.Tensor) -> None:
        assert self._table is not None
        first = start // self._columns
        table = total.view(-1, self._columns)
        begin, end = bisect_left(self._rows, first), bisect_left(self._rows, first + len(table))
        if begin < end:
            places = torch.tensor(self._rows[begin:end], device=total.device) - first
            table.index_copy_(0, places, self._table[begin:end].to(total.dtype))
