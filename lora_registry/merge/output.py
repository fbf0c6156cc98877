"""One file of the output while it is being written: its ranges, its descriptors, and what is known of it at the end."""

from __future__ import annotations

import errno
import fcntl
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import ConflictError
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.hashing import Bytes, FilePair, OrderedHash
from lora_registry.merge.kernel import BlockKernel, Room
from lora_registry.merge.plan import FilePlan, Part
from lora_registry.merge.processor import Processor
from lora_registry.merge.ranges import Block, Treatment, blocks_of, ranges_of
from lora_registry.merge.receipt import FileRecord, TensorRecord
from lora_registry.ops.arrays import Array, as_bytes, numpy_dtype
from lora_registry.ops.fidelity import Fidelity, Sums, fidelity

if TYPE_CHECKING:  # the encoders are imported where they are needed: a tenth of the start of a merge
    from lora_registry.merge.requantize import Requantization
    from lora_registry.quantized.encoding.encoder import Piece

CLONED = -1
"""In the journal, the number of a block that is the whole file: it was made as a clone of the base's."""

LITTLE = 0.4
"""Part of a file up to which it is worth a clone of which some blocks are then written over."""

_FICLONE = 0x40049409  # linux/fs.h
_NO_COPY_IN_KERNEL = frozenset({errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF})


class Slot:
    """The bytes of one block: as they are read, and as they are written."""

    def __init__(self, read: Array, written: Array) -> None:
        self.read = read
        self.written = written


class Output:
    """One file under way. Its blocks may be processed by any thread, in any order, each once.

    Args:
        plan: what it holds.
        base: what it is made from.
        path: where; the file is there only if a merge that was killed began it.
        finished: its blocks that are on the disk already.
        hashed: whether the base's file and this one get a digest.
        processor: what computes the blocks.
    """

    def __init__(
        self,
        plan: FilePlan,
        base: Checkpoint,
        path: Path,
        finished: dict[int, Sums | None],
        *,
        hashed: bool,
        processor: Processor,
    ) -> None:
        self.plan = plan
        self.ranges = ranges_of(plan, base)
        self.path = path
        self._base = base
        self._finished = finished
        self._hashed = hashed
        self._processor = processor
        self._source = base.shards[plan.origin].path
        self._read_from = self._write_to = -1
        self._cloned = False
        self._lock = Lock()
        self._kernels: dict[str, BlockKernel] = {}
        self._encoded: dict[str, Requantization] = {}
        self._entries = {part.name: part.entry for part in plan.parts if part.weight is not None}
        self._left: dict[str, int] = defaultdict(int)
        self._sums: dict[str, list[Sums]] = defaultdict(list)
        self._fidelity: dict[str, Fidelity] = {}
        differs_at = None
        for block in self.blocks():
            if block.range.part is not None:
                self._left[block.range.part.name] += 1
            if differs_at is None and (block.range.treatment is not Treatment.COPY or block.range.again):
                differs_at = block.number
        self._pair = FilePair(differs_at) if plan.follows_base else None
        self._written = OrderedHash()

    def blocks(self) -> Iterator[Block]:
        """Every block, in the order of the bytes."""
        return blocks_of(self.ranges, self._processor.elements)

    @property
    def touched(self) -> int:
        """Bytes that are not simply copied."""
        return sum(range_.size for range_ in self.ranges if range_.treatment is not Treatment.COPY)

    def open(self) -> bool:
        """Open both files; the new one has its full length from now on.

        Returns:
            Whether it was made as a clone just now, so that only what differs is left to be written.
        """
        self._read_from = os.open(self._source, os.O_RDONLY)
        self._write_to = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        self._cloned = CLONED in self._finished
        clonable = self.plan.same_layout and self.touched < LITTLE * self.plan.size and not self._finished
        if clonable:
            with suppress(OSError):  # most file systems cannot share blocks, or not with this one
                fcntl.ioctl(self._write_to, _FICLONE, self._read_from)
                self._cloned = True
        os.ftruncate(self._write_to, self.plan.size)
        return self._cloned and clonable

    def sync(self) -> None:
        """Make every byte that was written until now durable."""
        if self._write_to >= 0:
            os.fdatasync(self._write_to)

    def close(self) -> None:
        """Close both files."""
        for descriptor in (self._read_from, self._write_to):
            if descriptor >= 0:
                os.close(descriptor)
        self._read_from = self._write_to = -1

    def process(self, block: Block, slot: Slot, room: Room, release: Callable[[], None]) -> tuple[Sums | None, bool]:
        """Read, compute and write one block.

        Args:
            block: one of :meth:`blocks`.
            slot: where its bytes go; needed until ``release`` is called, maybe later and by another thread.
            room: buffers of the calling thread.
            release: called once.

        Returns:
            The sums of its fidelity, and whether it was written now: not where an earlier process had done so.

        Raises:
            ConflictError: the base's file has become shorter.
            InvalidInputError: a result is not finite, or does not fit into the output's dtype.
            OSError: reading or writing failed.
        """
        known = block.number in self._finished
        figures = self._finished.get(block.number)
        copied = block.range.treatment is Treatment.COPY
        encoded = block.range.treatment is Treatment.REQUANTIZE
        if encoded and not known:
            figures = self._encode(block)
        if not self._hashed and (known or copied or encoded):
            if copied and not known and not self._cloned:
                self._copy(block, slot)
            self._count(block, figures)
            release()
            return figures, not known
        read, written = self._bytes(block, slot)
        made = block.range.treatment is Treatment.HEADER  # in the plan, so that it need not be read back
        if encoded or (known and not copied and not made):
            _read_exactly(self._write_to, written, block.begin, self.path)
        elif not known:
            if block.range.part is not None:
                kernel = self._kernel(block.range.part)
                figures = kernel.run(block.start, block.stop, np.frombuffer(read, np.uint8), _array(written), room)
            if not (copied and self._cloned):
                _write_all(self._write_to, written, block.begin)
        self._count(block, figures)
        if not self._hashed:
            release()
        elif self._pair is None:
            self._written.offer(block.number, written, release)
        else:
            self._pair.offer(block.number, b"" if block.range.again else read, written, release)
        return figures, not known

    def _bytes(self, block: Block, slot: Slot) -> tuple[Bytes, Bytes]:
        """The bytes of the base, which have been read, and those of the output, which are yet to be made."""
        if block.range.treatment is Treatment.HEADER:
            return self._base.head(self.plan.origin), self.plan.head
        read = slot.read[: block.origin_end - block.origin].data
        part = block.range.part
        if part is not None and part.source is not None and self._base.is_computed(part.source):
            slot.read[: len(read)] = as_bytes(self._base.elements(part.source, block.start, block.stop))
        else:
            _read_exactly(self._read_from, read, block.origin, self._source)
        copied = block.range.treatment is Treatment.COPY
        return read, read if copied else slot.written[: block.end - block.begin].data

    def _copy(self, block: Block, slot: Slot) -> None:
        """Copy a block, in the kernel where the file systems let it."""
        done, size = 0, block.end - block.begin
        try:
            while done < size and hasattr(os, "copy_file_range"):  # Linux
                step = os.copy_file_range(
                    self._read_from, self._write_to, size - done, block.origin + done, block.begin + done
                )
                if not step:
                    break
                done += step
        except OSError as error:
            if error.errno not in _NO_COPY_IN_KERNEL:
                raise
        if done < size:
            rest = slot.read[: size - done].data
            _read_exactly(self._read_from, rest, block.origin + done, self._source)
            _write_all(self._write_to, rest, block.begin + done)

    def _kernel(self, part: Part) -> BlockKernel:
        """The kernel of a tensor, made by the first thread that needs it and kept until the tensor is complete."""
        with self._lock:
            if part.name not in self._kernels:
                dtype = self._base.dtype(part.source) if part.source is not None else part.entry.dtype
                self._kernels[part.name] = self._processor.kernel(
                    part, dtype, lambda start, stop: self._elements(part, start, stop)
                )
            return self._kernels[part.name]

    def _encode(self, block: Block) -> Sums | None:
        """See to it that all parts of a weight that lie in this file were written; its first block has its figures."""
        from lora_registry.merge.requantize import Requantization

        part = block.range.part
        assert part is not None
        assert part.weight is not None
        with self._lock:
            if part.weight not in self._encoded:
                weight = self._base.weight(part.weight)
                self._encoded[part.weight] = Requantization(part.weight, weight, part.changes, self._put)
        figures = self._encoded[part.weight].complete()
        return figures if self._is_first(part) and block.start == 0 else None

    def _put(self, piece: Piece) -> None:
        """Write bytes of a stored tensor, where it lies in this file."""
        entry = self._entries.get(piece.part)
        if entry is not None:
            begin = len(self.plan.head) + entry.begin + piece.begin
            _write_all(self._write_to, as_bytes(np.ascontiguousarray(piece.data)), begin)

    def _elements(self, part: Part, start: int, stop: int) -> Array:
        assert part.source is not None
        if self._base.is_computed(part.source):
            return self._base.elements(part.source, start, stop)
        dtype = self._base.dtype(part.source)
        size, (begin, _) = DTYPES[dtype].size, self._base.window(part.source)
        array = np.empty((stop - start) * size, np.uint8)
        _read_exactly(self._read_from, array.data, begin + start * size, self._source)
        return array.view(numpy_dtype(dtype))

    def _count(self, block: Block, figures: Sums | None) -> None:
        """Note that a block is done, and sum up the tensor of which it is the last."""
        part = block.range.part
        if part is None:
            return
        with self._lock:
            self._left[part.name] -= 1
            if figures is not None:
                self._sums[part.name].append(figures)
            if not self._left[part.name]:
                self._kernels.pop(part.name, None)
                if part.name in self._sums:
                    self._fidelity[part.name] = fidelity(self._sums.pop(part.name))

    def tensors(self) -> list[TensorRecord]:
        """One record for every target of every tensor that was changed; when all blocks are done."""
        return [
            TensorRecord(name, target.name, target.kind, dtype, self._fidelity.get(part.name), parts=parts)
            for part in self.plan.parts
            if part.weight is None or self._is_first(part)
            for name, dtype, parts in [self._written_as(part)]
            for target in part.changes
        ]

    def _is_first(self, part: Part) -> bool:
        """Whether a part of a quantized weight is the one that has its figures."""
        return part.weight is not None and self._base.weight(part.weight).parts[0] == part.name

    def _written_as(self, part: Part) -> tuple[str, str, tuple[str, ...]]:
        """Name of the tensor that a target changes, what its elements are, and the names that it is stored under."""
        if part.weight is None:
            return part.name, part.entry.dtype, ()
        from lora_registry.quantized.encoding.choice import encoder_for

        encoder = encoder_for(self._base.weight(part.weight), part.weight)
        return part.weight, encoder.name, encoder.parts

    def records(self) -> tuple[FileRecord, FileRecord]:
        """The records of the base's file and of this one; when all blocks are done."""
        read = written = None
        if self._hashed and self._pair is not None:
            read, written = self._pair.digests()
        elif self._hashed:
            read, written = Digest.of_file(self._source), self._written.digest()
        size = self._source.stat().st_size
        return FileRecord(self.plan.origin, size, read), FileRecord(self.plan.name, self.plan.size, written)


def _array(data: Bytes) -> Array:
    return np.frombuffer(data, np.uint8)


def _read_exactly(descriptor: int, buffer: Bytes, offset: int, path: Path) -> None:
    """Fill a buffer from a file.

    Raises:
        ConflictError: the file ends before.
    """
    assert isinstance(buffer, memoryview)
    while buffer:
        count = os.preadv(descriptor, [buffer], offset)
        if not count:
            raise ConflictError(f"{path} became shorter while it was being merged")
        buffer, offset = buffer[count:], offset + count


def _write_all(descriptor: int, data: Bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count
