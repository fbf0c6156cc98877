"""The one interface between loreg and a foreign format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from lora_registry.adapter import Adapter
from lora_registry.convert.report import Report


class Converter(Protocol):
    """Reads and writes one foreign format. N formats need 2N functions, not N².

    A converter is an object that an entry point of the group ``loreg.converters`` names. It knows the
    adapter model and its own format; it never sees the registry.
    """

    name: str
    """What users type after ``--to`` and ``--as``: ``peft``."""

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` looks like this format. Cheap, reads no tensor, never raises on foreign input."""
        ...

    def read(self, path: Path) -> tuple[Adapter, Report]:
        """Read an adapter; the tensors stay windows of the file where the format allows it.

        Raises:
            InvalidInputError: the files break the foreign format.
            UnsupportedError: they are sound and say what an adapter cannot hold, or leave undecided what
                must be known.
        """
        ...

    def write(self, adapter: Adapter, path: Path) -> Report:
        """Write an adapter. All or nothing: on an error nothing is left at ``path``.

        Raises:
            ConflictError: ``path`` exists.
            UnsupportedError: the foreign format cannot say what the adapter says.
        """
        ...


@runtime_checkable
class ForModel(Protocol):
    """A converter whose files mean nothing without a model: their names are those of the model's inputs."""

    def for_model(self, model: Path) -> Converter:
        """The converter for the adapters of one model.

        Args:
            model: the file of the model; looked at when something is read or written.
        """
        ...
