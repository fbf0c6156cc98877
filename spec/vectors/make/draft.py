"""An adapter before it is a file: a document and tensors, of which everything may still be changed."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import canonical
import container
from container import Tensor

Shape = tuple[int, ...]


@dataclass(slots=True)
class Draft:
    """A document and the tensors beside it, by key."""

    document: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def copy(self) -> Draft:
        """The same once more, to be changed."""
        return Draft(deepcopy(self.document), dict(self.tensors))

    def target(self, name: str) -> dict[str, Any]:
        """The record of a target."""
        record: dict[str, Any] = self.document["targets"][name]
        return record

    def put(self, name: str, role: str, item: Tensor) -> None:
        """Replace a tensor of a target, or add one, with its digest."""
        self.tensors[f"{name}/{role}"] = item
        self.target(name)["tensors"][role] = item.digest

    def take(self, name: str, role: str) -> None:
        """Take a tensor of a target away, from the document and from the file."""
        del self.tensors[f"{name}/{role}"]
        del self.target(name)["tensors"][role]

    def roles(self, name: str) -> dict[str, Tensor]:
        """Role to tensor of a target."""
        return {role: self.tensors[f"{name}/{role}"] for role in self.target(name)["tensors"]}

    def file(self, text: str | None = None) -> bytes:
        """A file of the document as it is, or of this text in its place; all else as a writer writes it."""
        spelled = canonical.encode(self.document).decode() if text is None else text
        return container.sealed(self.tensors, {"loreg": spelled})

    def canonical_file(self) -> bytes:
        """The file that a writer writes (P-019 to P-021)."""
        return Draft(canonical.canonical_document(self.document), self.tensors).file()


def adapter(targets: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Tensor]]], **fields: Any) -> Draft:
    """A draft of these targets: the fields of each, and its tensors by role."""
    draft = Draft({"loreg": 1, **fields, "targets": {}})
    for name, (record, tensors) in targets.items():
        draft.document["targets"][name] = {**record, "tensors": {}}
        for role, item in tensors.items():
            draft.put(name, role, item)
    return draft


def one(
    tensors: Mapping[str, Tensor], *, name: str = "w", top: Mapping[str, Any] | None = None, **record: Any
) -> Draft:
    """A draft of one target."""
    return adapter({name: (record, tensors)}, **(top or {}))
