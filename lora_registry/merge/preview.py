"""What a merge would do, told without doing it: files, ranges by offset, bytes, tensors, room and decisions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from lora_registry.adapter import Json
from lora_registry.merge.checkpoint import Merge
from lora_registry.merge.destination import SPARE, free_room
from lora_registry.merge.ranges import Range, Treatment, ranges_of


@dataclass(frozen=True, slots=True)
class FilePreview:
    """One file of the output.

    Attributes:
        name: its name.
        origin: name of the base's file that it is made from.
        size: its bytes.
        ranges: what it is made of, in the order of the bytes.
    """

    name: str
    origin: str
    size: int
    ranges: tuple[Range, ...]

    def bytes(self, *treatments: Treatment) -> int:
        """Bytes that come about in one of these ways."""
        return sum(range_.size for range_ in self.ranges if range_.treatment in treatments)

    def to_json(self) -> dict[str, Json]:
        """The file as a JSON object."""
        return {
            "name": self.name,
            "origin": self.origin,
            "size": self.size,
            "ranges": [_range_json(range_) for range_ in self.ranges],
        }


@dataclass(frozen=True, slots=True)
class Preview:
    """A whole merge that was checked and not carried out.

    Attributes:
        files: the files of weights.
        others: bytes of the other files.
        free: bytes that the disk has for it.
        verdict: how the adapter fits the base.
        dtypes: number of tensors of each element type in the output.
        ties: output embedding to the input embedding that shares its values in the base.
        options: every option that shapes the output.
        notes: decisions and omissions, one sentence each.
        view: how the base is quantized, if the merge goes into the values that it stands for.
        cautions: what speaks against the merge, one sentence each.
    """

    files: tuple[FilePreview, ...]
    others: int
    free: int
    verdict: str
    dtypes: dict[str, int]
    ties: dict[str, str]
    options: dict[str, Json]
    notes: tuple[str, ...]
    view: dict[str, Json] | None = None
    cautions: tuple[str, ...] = ()

    def bytes(self, *treatments: Treatment) -> int:
        """Bytes of all files that come about in one of these ways."""
        return sum(file.bytes(*treatments) for file in self.files)

    @property
    def tensors(self) -> dict[str, tuple[str, ...]]:
        """Name of every tensor that is changed or added, to the names of the targets that do it."""
        return {
            range_.part.name: tuple(target.name for target in range_.part.changes)
            for file in self.files
            for range_ in file.ranges
            if range_.part is not None and range_.part.changes
        }

    @property
    def needed(self) -> int:
        """Bytes that must be free."""
        return sum(file.size for file in self.files) + self.others + SPARE

    def to_json(self) -> dict[str, Json]:
        """The preview as a JSON object."""
        return {
            "verdict": self.verdict,
            "options": self.options,
            "files": [file.to_json() for file in self.files],
            "bytes": {treatment.value: self.bytes(treatment) for treatment in Treatment},
            "tensors": {name: list(targets) for name, targets in self.tensors.items()},
            "dtypes": dict(self.dtypes),
            "ties": dict(self.ties),
            "room": {"needed": self.needed, "free": self.free},
            "notes": list(self.notes),
            "warnings": list(self.cautions),
            **({} if self.view is None else {"view": self.view}),
        }


def preview(merge: Merge) -> Preview:
    """What carrying out ``merge`` would do; nothing is written."""
    weights = sum(file.size for file in merge.plan.files)
    return Preview(
        files=tuple(
            FilePreview(file.name, file.origin, file.size, ranges_of(file, merge.base)) for file in merge.plan.files
        ),
        others=merge.room - weights,
        free=free_room(merge.out),
        verdict=merge.fitted.verdict.value,
        dtypes=dict(Counter(part.entry.dtype for file in merge.plan.files for part in file.parts)),
        ties=dict(merge.base.ties),
        options=merge.options.to_json(),
        notes=merge.notes(),
        view=None if merge.base.scheme is None else merge.base.scheme.to_json(),
        cautions=merge.cautions(),
    )


def _range_json(range_: Range) -> dict[str, Json]:
    record: dict[str, Json] = {"treatment": range_.treatment.value, "begin": range_.begin, "end": range_.end}
    if range_.treatment is not Treatment.ADD:
        record["origin"] = range_.origin
    if range_.part is not None:
        record["tensor"] = range_.part.name
        record["dtype"] = range_.part.entry.dtype
    return record
