"""The note that loreg's exporter leaves in an ONNX file: which initializer holds which tensor of the base.

It stands in the model's ``metadata_props`` under :data:`KEY`, as one canonical JSON document::

    {"version": 1,
     "tensors": {"model.embed_tokens.weight": {"initializer": "lm_head.weight", "transposed": false}, …},
     "task": "decoder", "dtype": "F32", "tool": "loreg 0.1.0"}

Keys of ``tensors`` are names in the base *checkpoint*; a tensor that is made on loading (the other name of a
tied one, stacked experts) has its name in the loaded model. Two names may share an initializer: the base
ties them. A name is there only if the exporter compared the values, so a reader may rely on every line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_registry.adapter import Json
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format import canonical

KEY = "loreg.manifest"
"""Key in ``metadata_props``."""

VERSION = 1


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor of the base is found.

    Attributes:
        initializer: name of the initializer in the main graph.
        transposed: whether the initializer holds the checkpoint's tensor with its two axes swapped.
    """

    initializer: str
    transposed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Which initializer holds which tensor of the base.

    Attributes:
        tensors: name in the base checkpoint to its place.
        task: what the model does, a value of :class:`lora_registry.runtime.torch_model.Task`; None for a bare module.
        dtype: element type of the weights, a key of :data:`lora_registry.dtypes.DTYPES`.
        tool: name and version of what wrote the file.
    """

    tensors: Mapping[str, Place]
    task: str | None = None
    dtype: str | None = None
    tool: str | None = None

    def encode(self) -> str:
        """The canonical JSON text; equal manifests give equal text."""
        tensors: dict[str, Json] = {
            name: {"initializer": place.initializer, "transposed": place.transposed}
            for name, place in self.tensors.items()
        }
        document: dict[str, Json] = {"version": VERSION, "tensors": tensors}
        told = {"task": self.task, "dtype": self.dtype, "tool": self.tool}
        document.update({key: value for key, value in told.items() if value is not None})
        return canonical.encode(document).decode()

    @classmethod
    def decode(cls, text: str) -> Manifest:
        """Read what :meth:`encode` wrote.

        Raises:
            InvalidInputError: the text is not such a document.
            UnsupportedError: a later version of loreg wrote it.
        """
        try:
            document = canonical.decode(text)
        except canonical.JsonError as error:
            raise InvalidInputError(f"{KEY}: {error}") from error
        if not isinstance(document, dict) or not isinstance(document.get("tensors"), dict):
            raise InvalidInputError(f"{KEY}: not an object with 'tensors'")
        if document.get("version") != VERSION:
            raise UnsupportedError(f"{KEY}: version {document.get('version')!r}; this loreg reads version {VERSION}")
        tensors = document["tensors"]
        assert isinstance(tensors, dict)
        return cls(
            tensors={name: _place(name, value) for name, value in tensors.items()},
            task=_text(document, "task"),
            dtype=_text(document, "dtype"),
            tool=_text(document, "tool"),
        )

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Manifest | None:
        """The manifest among a model's ``metadata_props``; None where there is none."""
        text = metadata.get(KEY)
        return None if text is None else cls.decode(text)


def _place(name: str, value: Json) -> Place:
    if isinstance(value, dict):
        initializer, transposed = value.get("initializer"), value.get("transposed")
        if isinstance(initializer, str) and isinstance(transposed, bool):
            return Place(initializer, transposed)
    raise InvalidInputError(f"{KEY}: tensors/{name} is not {{initializer, transposed}}")


def _text(document: Mapping[str, Json], key: str) -> str | None:
    value = document.get(key)
    if value is None or isinstance(value, str):
        return value
    raise InvalidInputError(f"{KEY}: {key} is not a string")
