"""What the registry tells about an adapter without opening its file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from lora_registry.adapter import Adapter, Json
from lora_registry.digest import Digest
from lora_registry.store.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The few facts about an adapter that lists show; a function of its header.

    Attributes:
        targets: number of targets.
        parameters: number of elements that it carries.
        ranks: the ranks that occur, ascending.
        kinds: the kinds of target that occur, ascending.
        dtypes: safetensors names of the element types that occur, ascending.
        base: name of the base model.
        license: SPDX expression of the adapter's license.
        title: one line that says what it is for.
    """

    targets: int
    parameters: int
    ranks: tuple[int, ...]
    kinds: tuple[str, ...]
    dtypes: tuple[str, ...]
    base: str | None = None
    license: str | None = None
    title: str | None = None

    @classmethod
    def of(cls, adapter: Adapter) -> Summary:
        """Sum up ``adapter``; does not look at its data."""
        return cls(
            targets=len(adapter),
            parameters=adapter.parameters,
            ranks=adapter.ranks,
            kinds=tuple(sorted({target.kind.value for target in adapter})),
            dtypes=tuple(sorted({tensor.dtype for target in adapter for tensor in target.tensors.values()})),
            base=adapter.base.name,
            license=_text(adapter.info.get("license")),
            title=_text(adapter.info.get("title")),
        )

    def to_json(self) -> dict[str, Json]:
        """The summary as a JSON object with the field names; None is left out."""
        said = {"base": self.base, "license": self.license, "title": self.title}
        return {
            "targets": self.targets,
            "parameters": self.parameters,
            "ranks": list[Json](self.ranks),
            "kinds": list[Json](self.kinds),
            "dtypes": list[Json](self.dtypes),
            **{key: value for key, value in said.items() if value is not None},
        }

    @classmethod
    def from_json(cls, fields: dict[str, Json]) -> Summary:
        """Read what :meth:`to_json` gave."""
        return cls(
            targets=cast("int", fields["targets"]),
            parameters=cast("int", fields["parameters"]),
            ranks=tuple(cast("list[int]", fields["ranks"])),
            kinds=tuple(cast("list[str]", fields["kinds"])),
            dtypes=tuple(cast("list[str]", fields["dtypes"])),
            base=_text(fields.get("base")),
            license=_text(fields.get("license")),
            title=_text(fields.get("title")),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One adapter in the registry, under one reference.

    Attributes:
        reference: the name it was found under.
        digest: digest of its manifest; what ``repository@digest`` takes.
        blob: digest of the native file.
        content: content digest, the identity of what it means.
        size: bytes of the native file.
        created: when the repository first held it, RFC 3339 in UTC.
        summary: what lists show.
        generation: sequence number of the event that last set the tag; None where a digest was asked for.
        immutable: whether the tag can neither move nor go.
        unchanged: whether a push or tag found everything as it was asked to be.
    """

    reference: Reference
    digest: Digest
    blob: Digest
    content: Digest
    size: int
    created: str
    summary: Summary
    generation: int | None = None
    immutable: bool = False
    unchanged: bool = False

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object with the field names."""
        return {
            "reference": str(self.reference),
            "digest": str(self.digest),
            "blob": str(self.blob),
            "content": str(self.content),
            "size": self.size,
            "created": self.created,
            "summary": self.summary.to_json(),
            "generation": self.generation,
            "immutable": self.immutable,
            "unchanged": self.unchanged,
        }


def _text(value: Json) -> str | None:
    return value if isinstance(value, str) else None
