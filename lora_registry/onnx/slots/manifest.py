"""The note that a switchable model carries: which slots it has, and for which base (``spec/switchable.md``).

It stands in the model's ``metadata_props`` under :data:`KEY`, as one canonical JSON document. Nothing here needs
onnx: a runtime reads the text from the session it has open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lora_registry.adapter import LAYOUTS, Json, Kind, Layout
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format import canonical

KEY = "loreg.slots"
"""Key in ``metadata_props``."""

VERSION = 1

SCALE = "adapter_scale"
"""Input of a model that is not batched: one F32 number by which the active adapter is multiplied; 1 by default."""

IDS = "adapter_ids"
"""Input of a batched model: I64 (batch,), the adapter of each row; (1,) with 0, the base, by default."""

KINDS = frozenset({Kind.LINEAR, Kind.EMBEDDING, Kind.CONV})
"""The kinds of targets that a slot can hold."""

Role = Literal["A", "B"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """The place of one target in a graph: two inputs with an empty initializer of the same name.

    Attributes:
        target: name of the base tensor, as in the checkpoint.
        kind: one of :data:`KINDS`.
        layout: axis order in which the checkpoint stores the tensor.
        shape: its shape as stored.
        dtype: element type of the two inputs, safetensors' name.
        nodes: names of the operators beside which the branch runs.
        fingerprint: of the base tensor (spec section 9); None where the graph holds it quantized only.
        rounded: whether the fingerprint is that of the graph's own tensor of 16 bits, which the checkpoint's may
            have been rounded to.
    """

    target: str
    kind: Kind
    layout: Layout
    shape: tuple[int, ...]
    dtype: str
    nodes: tuple[str, ...]
    fingerprint: Digest | None = None
    rounded: bool = False

    def input(self, role: Role) -> str:
        """Name of the input for a factor: the key that it has in a native file (spec section 3)."""
        return f"{self.target}/{role}"

    @property
    def width(self) -> int:
        """Length of the axis ``in``; the vocabulary of an embedding."""
        return self.shape[self.layout.index("in")]

    @property
    def height(self) -> int:
        """Length of the axis ``out``."""
        return self.shape[self.layout.index("out")]

    def factor_shape(self, role: Role, rank: int) -> tuple[int, ...]:
        """Shape of an input: A (in, r) and B (r, out), or of a conv A (r, in, k…) and B (out, r, 1…)."""
        if self.kind is Kind.CONV:
            kernel = self.shape[2:]
            return (rank, self.width, *kernel) if role == "A" else (self.height, rank, *(1 for _ in kernel))
        return (self.width, rank) if role == "A" else (rank, self.height)

    def rank_axis(self, role: Role) -> int:
        """Which axis of :meth:`factor_shape` the rank is."""
        return (role == "B") if self.kind is Kind.CONV else (role == "A")

    def record(self) -> dict[str, Json]:
        """The slot as JSON, without its name."""
        record: dict[str, Json] = {
            "kind": self.kind.value,
            "layout": list[Json](self.layout),
            "shape": list[Json](self.shape),
            "dtype": self.dtype,
            "nodes": list[Json](self.nodes),
        }
        if self.fingerprint is not None:
            record["fingerprint"] = str(self.fingerprint)
            record["rounded"] = self.rounded
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotManifest:
    """All slots of a model.

    Attributes:
        slots: by target.
        batched: whether the inputs have a leading axis of adapters, of which each row of the batch chooses one.
        tool: name and version of what made the model.
    """

    slots: Mapping[str, Slot]
    batched: bool = False
    tool: str | None = None

    @property
    def model_version(self) -> int:
        """What an ``.onnx_adapter`` for this model states: 31 bits of the digest of slots and base."""
        return number_of(Digest.of(canonical.encode(self._meaning())))

    def _meaning(self) -> dict[str, Json]:
        slots: dict[str, Json] = {name: slot.record() for name, slot in sorted(self.slots.items())}
        return {"version": VERSION, "batched": self.batched, "slots": slots}

    def encode(self) -> str:
        """The canonical JSON text; equal manifests give equal text."""
        document = self._meaning()
        if self.tool is not None:
            document["tool"] = self.tool
        return canonical.encode(document).decode()

    @classmethod
    def decode(cls, text: str) -> SlotManifest:
        """Read what :meth:`encode` wrote.

        Raises:
            InvalidInputError: the text is not such a document.
            UnsupportedError: a later version of loreg wrote it.
        """
        try:
            document = canonical.decode(text)
        except canonical.JsonError as error:
            raise InvalidInputError(f"{KEY}: {error}") from error
        if not isinstance(document, dict):
            raise InvalidInputError(f"{KEY}: not an object")
        if document.get("version") != VERSION:
            raise UnsupportedError(f"{KEY}: version {document.get('version')!r}; this loreg reads version {VERSION}")
        slots, batched, tool = document.get("slots"), document.get("batched"), document.get("tool")
        if not isinstance(slots, dict) or not isinstance(batched, bool) or not (tool is None or isinstance(tool, str)):
            raise InvalidInputError(f"{KEY}: not {{version, slots, batched, tool}}")
        return cls(slots={name: _slot(name, record) for name, record in slots.items()}, batched=batched, tool=tool)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> SlotManifest | None:
        """The manifest among a model's ``metadata_props``; None where there is none."""
        text = metadata.get(KEY)
        return None if text is None else cls.decode(text)


def number_of(digest: Digest) -> int:
    """The first 31 bits of a digest, as a positive number; 0 is what tools write that say nothing."""
    return int(digest.hex[:8], 16) >> 1 or 1


def _slot(name: str, record: Json) -> Slot:
    try:
        return _parsed(name, record)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(f"{KEY}: slots/{name} is not a slot") from error


def _parsed(name: str, record: Json) -> Slot:
    """A slot; KeyError, TypeError or ValueError where ``record`` is none."""
    if not isinstance(record, dict):
        raise TypeError
    layout, lengths, nodes = (_list(record[key]) for key in ("layout", "shape", "nodes"))
    shape = tuple(length for length in lengths if isinstance(length, int) and length > 0)
    stated = record.get("fingerprint")
    slot = Slot(
        target=name,
        kind=Kind(str(record["kind"])),
        layout=tuple(str(axis) for axis in layout),
        shape=shape,
        dtype=str(record["dtype"]),
        nodes=tuple(str(node) for node in nodes),
        fingerprint=None if stated is None else Digest.parse(str(stated)),
        rounded=record.get("rounded") is True,
    )
    is_known = slot.kind in KINDS and slot.layout in LAYOUTS[slot.kind] and slot.dtype in DTYPES
    if not is_known or len(shape) != len(lengths) or len(shape) != len(layout):
        raise ValueError
    return slot


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError
    return value
