"""The threads that write the output: each takes the next block, reads, computes and writes it, and takes another.

Reading, writing, hashing and numpy all let go of the interpreter lock, so threads are enough. How many blocks are
under way at a time is bounded by the slots, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from threading import Condition, Thread

import numpy as np

from lora_registry.merge.kernel import Room
from lora_registry.merge.output import Output, Slot
from lora_registry.merge.processor import Processor
from lora_registry.merge.ranges import Block, Largest
from lora_registry.merge.threads import join_begun
from lora_registry.ops.fidelity import Sums

Report = Callable[[Output, Block, Sums | None, bool], None]
"""Told of every block that is done: its file, its figures, and whether it was written now."""


class Workers:
    """A number of workers on one merge.

    Args:
        count: how many, at least 1.
        largest: the largest block there will be.
        processor: what computes the blocks, for which it has the memory that their bytes go through.
        report: called for every block, by one thread at a time.
    """

    def __init__(self, count: int, largest: Largest, processor: Processor, report: Report) -> None:
        self._count = count
        self._largest = largest
        self._processor = processor
        self._report = report
        self._slots: list[Slot] = []
        self._slots_left = 2 * count + 2  # those yet to be made; without digests, no more than the workers hold are
        self._changed = Condition()
        self._work: Iterator[tuple[Output, Block]] = iter(())
        self._stopped = False
        self._error: BaseException | None = None

    def run(self, work: Iterable[tuple[Output, Block]]) -> None:
        """Do all of ``work``, of which the next piece is asked for by one thread at a time.

        Raises:
            BaseException: the first error of a worker; all have stopped then.
        """
        self._work = iter(work)
        threads = [Thread(target=self._guarded, name=f"loreg-merge-{number}") for number in range(self._count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:  # an interrupt of the user reaches the thread that waits
            self._stop(None)
            join_begun(threads)
        if self._error is not None:
            raise self._error

    def _guarded(self) -> None:
        try:
            self._loop()
        except BaseException as error:  # noqa: BLE001 - it is raised again by run()
            self._stop(error)

    def _stop(self, error: BaseException | None) -> None:
        with self._changed:
            self._stopped = True
            self._error = self._error or error
            self._changed.notify_all()

    def _loop(self) -> None:
        room = Room(self._largest.elements)
        with np.errstate(all="ignore"):  # what goes wrong shows in the result, which is checked
            while (taken := self._take()) is not None:
                output, block, slot = taken
                figures, written = output.process(block, slot, room, partial(self._release, slot))
                with self._changed:
                    self._report(output, block, figures, written)

    def _take(self) -> tuple[Output, Block, Slot] | None:
        """A block and a slot for it; None where there is nothing left to do."""
        with self._changed:
            self._changed.wait_for(lambda: self._slots or self._slots_left or self._stopped)
            if self._stopped:
                return None
            following = next(self._work, None)
            return None if following is None else (*following, self._slots.pop() if self._slots else self._new_slot())

    def _new_slot(self) -> Slot:
        self._slots_left -= 1
        return Slot(self._processor.buffer(self._largest.read), self._processor.buffer(self._largest.written))

    def _release(self, slot: Slot) -> None:
        with self._changed:
            self._slots.append(slot)
            self._changed.notify()
