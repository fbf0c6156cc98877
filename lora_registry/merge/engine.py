"""The weights of the output, written by several workers, so that a kill costs no more than a second's work.

====================== ======================================================
what                   where
====================== ======================================================
what comes from where  :mod:`~lora_registry.merge.ranges`
one file               :mod:`~lora_registry.merge.output`
one block              :mod:`~lora_registry.merge.kernel`, by a :mod:`~lora_registry.merge.processor`
who does it            :mod:`~lora_registry.merge.workers`
the digests            :mod:`~lora_registry.merge.hashing`
what is on the disk    :mod:`~lora_registry.merge.journal`
====================== ======================================================
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

from threadpoolctl import threadpool_limits

from lora_registry.adapter import Json
from lora_registry.merge import journal as journals
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.journal import Finished, Journal
from lora_registry.merge.output import CLONED, Output
from lora_registry.merge.plan import Plan
from lora_registry.merge.processor import Processor
from lora_registry.merge.ranges import Block, Largest
from lora_registry.merge.receipt import FileRecord, TensorRecord
from lora_registry.merge.staging import Staging
from lora_registry.merge.workers import Workers
from lora_registry.ops.fidelity import Sums
from lora_registry.progress import Counted, Progress


@dataclass(frozen=True, slots=True)
class Written:
    """The weights that were written: records of the base's files and of the new ones, in order, and of the tensors."""

    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]
    tensors: tuple[TensorRecord, ...]


def write_weights(
    plan: Plan,
    base: Checkpoint,
    staging: Staging,
    identity: Mapping[str, Json],
    *,
    processor: Processor,
    workers: int,
    hashed: bool,
    durable: bool,
    resume: bool,
    progress: Progress | None,
) -> Written:
    """Write every file of ``plan``.

    Args:
        plan: what to write.
        base: what it is made from.
        staging: where.
        identity: what a resumed merge must have in common with the one that was killed.
        processor: what computes the blocks.
        workers: threads.
        hashed: whether the files get digests.
        durable: whether all of it is on the disk when this returns, and in the journal as soon as it is; without,
            nothing can be resumed.
        resume: go on with what is in ``staging``.
        progress: called with the bytes written and of all.

    Raises:
        ConflictError: the merge in ``staging`` is another one; or a file of the base became shorter.
        InvalidInputError: a result is not finite, or does not fit into the output's dtype.
        NotFoundError: there is nothing to resume.
        MachineError: the device has not enough memory, or failed.
        OSError: reading or writing failed.
    """
    finished: Finished = {}
    valid = 0
    if resume:
        valid, finished = journals.resume(staging.journal, identity)
        staging.begun = True
    elif durable:
        valid = journals.begin(staging.journal, identity)
    outputs = [
        Output(file, base, staging.files / file.name, finished.get(file.name, {}), hashed=hashed, processor=processor)
        for file in plan.files
    ]
    largest = Largest()
    for output in outputs:
        largest = largest.including(output.ranges, processor.elements)
    counted = Counted(progress, sum(file.size for file in plan.files))

    def sync() -> None:
        for output in outputs:
            output.sync()

    journal = Journal(staging.journal, valid, sync) if durable else None

    def report(output: Output, block: Block, figures: Sums | None, written: bool) -> None:
        if written and journal is not None:
            journal.finished(output.plan.name, block.number, figures)
        counted.advance(block.end - block.begin)

    try:
        # The workers share the cores; BLAS with threads of its own would only be in their way.
        with threadpool_limits(1, "blas"), processor.ready(largest), journal or nullcontext():
            Workers(workers, largest, processor, report).run(_in_turn(outputs, workers, journal))
        if durable:
            sync()
        records = [output.records() for output in outputs]
    finally:
        for output in outputs:
            output.close()
    return Written(
        tuple(read for read, _ in records),
        tuple(written for _, written in records),
        tuple(record for output in outputs for record in output.tensors()),
    )


def _in_turn(outputs: Iterable[Output], at_once: int, journal: Journal | None) -> Iterator[tuple[Output, Block]]:
    """Every block of every file, in order within a file, of ``at_once`` files in turn.

    File systems let one thread at a time write to a file, so as many are under way as there are workers.
    """
    waiting = iter(outputs)
    under_way = deque(_blocks(output, journal) for output in islice(waiting, at_once))
    while under_way:
        blocks = under_way.popleft()
        following = next(blocks, None)
        if following is not None:
            under_way.append(blocks)
            yield following
        else:
            under_way.extend(_blocks(output, journal) for output in islice(waiting, 1))


def _blocks(output: Output, journal: Journal | None) -> Iterator[tuple[Output, Block]]:
    if output.open() and journal is not None:
        journal.finished(output.plan.name, CLONED, None)
    for block in output.blocks():
        yield output, block
