"""A changed weight, quantized again: all of it in one go, by the threads that wait for its bytes.

The parts of one weight may lie anywhere in a file, its scales far from its elements, and none of them is known before
the weight is changed. So the first thread that comes to a block of any part encodes the weight, every thread that comes
meanwhile helps, and the bytes are written to their places at once; a block is then read back like one that an earlier
process had written. What is held are the factors, some rows for each thread, and of layouts that pack along the inputs
(GPTQ, AWQ) the parts of that weight.
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum, lcm
from threading import Condition
from typing import Any

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.errors import InvalidInputError
from lora_registry.ops.arrays import Array, round_to, to_array
from lora_registry.ops.change import RowMerger, refuse_nonfinite
from lora_registry.ops.fidelity import Sums, sums
from lora_registry.quantized.encoding.choice import encoder_for
from lora_registry.quantized.encoding.encoder import Encoder, Piece
from lora_registry.quantized.weight import QuantizedWeight, elements, row_count

ELEMENTS = 1 << 18
"""Elements that a thread encodes at a time, more or less: 1 MB of float32, and the encoder makes a dozen such."""

Write = Callable[[Piece], None]
"""Puts bytes of a stored tensor into their place."""


class Requantization:
    """One weight that is changed and quantized again.

    Args:
        name: of the weight.
        weight: what the base stores.
        targets: what changes it, in order.
        write: called for every piece, by any thread.
    """

    def __init__(self, name: str, weight: QuantizedWeight, targets: tuple[Target, ...], write: Write) -> None:
        self._name = name
        self._targets = targets
        self._write = write
        self._changed = Condition()
        self._work: _Work | None = _Work(name, weight, targets)
        self._next = self._done = 0
        self._sums: dict[int, Sums] = {}
        self._error: BaseException | None = None
        self._result: Sums | None = None

    def complete(self) -> Sums:
        """See to it that every piece was written.

        Returns:
            The sums of the fidelity of the whole weight.

        Raises:
            InvalidInputError: a value is not finite.
            OSError: writing failed.
        """
        try:
            while (number := self._take()) is not None:
                self._encode(number)
            with self._changed:
                self._changed.wait_for(lambda: self._result is not None or self._error is not None)
                if self._result is None:
                    assert self._error is not None
                    raise self._error
                return self._result
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
            raise

    def _take(self) -> int | None:
        """Number of the next run of rows; None where there is none left to begin."""
        with self._changed:
            if self._work is None or self._error is not None:
                return None
            self._work.prepare()
            if self._next == self._work.count:
                return None
            self._next += 1
            return self._next - 1

    def _encode(self, number: int) -> None:
        work = self._work
        assert work is not None
        pieces, figures = work.encode(number)
        for piece in pieces:
            self._write(piece)
        with self._changed:
            self._sums[number] = figures
            last = len(self._sums) == work.count
        if last:
            for piece in work.encoder.rest():
                self._write(piece)
            with self._changed:
                self._result = _total([self._sums[number] for number in sorted(self._sums)])
                self._work, self._sums = None, {}
                self._changed.notify_all()


class _Work:
    """What is held of a weight while it is encoded."""

    def __init__(self, name: str, weight: QuantizedWeight, targets: tuple[Target, ...]) -> None:
        self._name = name
        self._weight = weight
        self._targets = targets
        self._prepared = False
        self.encoder: Encoder = encoder_for(weight, name)
        wide = weight.dtype == "F64" or self.encoder.name == "F32"
        self._compute: type[np.floating[Any]] = np.float64 if wide else np.float32
        self._value: Array | None = None
        self._mergers: list[RowMerger] = []
        self._rows = row_count(weight)
        self._width = weight.shape[-1]
        self._step = 0
        self.count = 0

    def prepare(self) -> None:
        """Make what the targets need; by the first thread."""
        if self._prepared:
            return
        self._prepared = True
        self.encoder.prepare()
        together = self.encoder.step * self._width
        if self._targets[0].kind is Kind.FULL:
            self._value = to_array(self._targets[0].tensors["value"]).reshape(-1)
        else:
            self._mergers = [RowMerger(target, self._weight.shape, self._compute) for target in self._targets]
            together = lcm(together, *(merger.columns for merger in self._mergers))
            if self._mergers[0].needs_norms:
                self._mergers[0].measure_norms(lambda start, stop: elements(self._weight, start, stop))
        self._step = max(1, ELEMENTS // together) * together
        self.count = -(-self._rows * self._width // self._step)
        if self.encoder.needs_range:
            self._measure()

    def _measure(self) -> None:
        low = high = 0.0
        for number in range(self.count):
            _, _, _, wanted = self._values(number)
            low, high = min(low, float(wanted.min())), max(high, float(wanted.max()))
        self.encoder.cover(low, high)

    def _values(self, number: int) -> tuple[int, int, Array, Array]:
        """One run of elements: its first, the one past its last, W, and W' unrounded."""
        start = number * self._step
        stop = min(start + self._step, self._rows * self._width)
        before = elements(self._weight, start, stop).astype(self._compute)
        if self._value is not None:
            wanted = self._value[start:stop].astype(self._compute)
            refuse_nonfinite(self._name, start, before, wanted)
        else:
            wanted = before
            for merger in self._mergers:
                wanted = merger.merge(start, stop, wanted)
        if not np.isfinite(wanted).all():
            raise InvalidInputError(f"{self._name}: holds values that are not finite, and these cannot be quantized")
        return start, stop, before, wanted

    def encode(self, number: int) -> tuple[list[Piece], Sums]:
        """Change and encode one run of rows."""
        start, stop, before, wanted = self._values(number)
        table = (-1, self._width)
        with np.errstate(over="ignore", invalid="ignore"):
            pieces, shown = self.encoder.encode(
                start // self._width, stop // self._width, before.reshape(table), wanted.reshape(table)
            )
            kept = round_to(shown.reshape(-1), self._weight.dtype).astype(self._compute)
        if not np.isfinite(kept).all():
            raise InvalidInputError(f"{self._name}: the merged weight is beyond the range of {self.encoder.name}")
        return pieces, sums(before, wanted, kept)


def _total(figures: list[Sums]) -> Sums:
    """The figures of a whole weight."""
    base, wanted, error, cross = (fsum(part[field] for part in figures) for field in range(4))
    unchanged, elements_ = sum(part.unchanged for part in figures), sum(part.elements for part in figures)
    return Sums(base, wanted, error, cross, unchanged, elements_)
