"""What an export wrote."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from lora_registry.adapter import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export wrote.

    Attributes:
        files: the ``.onnx``, then its data file if it has one; of a folder all its files.
        task: what the model computes; None for a bare module.
        dtype: element type of the weights, safetensors name.
        inputs: names of the graph's inputs; of two graphs those of both, each name once.
        outputs: names of the graph's outputs, likewise.
        tensors: number of base tensors that the manifests place.
        merged: number of targets that were merged.
        unused: tensors of the checkpoint that no initializer holds as they are: heads that the model does not
            have, or experts that transformers stacks.
        nbytes: size of the files together.
        notes: what to know before the files are run.
    """

    files: tuple[Path, ...]
    task: str | None
    dtype: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    tensors: int
    merged: int = 0
    unused: tuple[str, ...]
    nbytes: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The report as a JSON object."""
        plain = asdict(self)
        return {
            key: [str(item) for item in value] if isinstance(value, tuple) else value for key, value in plain.items()
        }

    def lines(self) -> list[tuple[str, object]]:
        """Name and value of what people want to know."""
        return [
            ("files", ", ".join(path.name for path in self.files)),
            ("bytes", self.nbytes),
            ("task", self.task),
            ("dtype", self.dtype),
            ("inputs", _shortened(self.inputs)),
            ("outputs", _shortened(self.outputs)),
            ("base tensors", self.tensors),
            ("merged", f"{self.merged} targets" if self.merged else ""),
            ("not placed", _counted(self.unused)),
            *(("note", note) for note in self.notes),
        ]


def _shortened(names: tuple[str, ...]) -> str:
    """The names, with those of the KV cache counted."""
    plain = [name for name in names if not name.startswith(("past_key_values.", "present."))]
    cache = len(names) - len(plain)
    return ", ".join(plain) + (f" and {cache} of the KV cache" if cache else "")


def _counted(names: tuple[str, ...]) -> str:
    """The first name, and how many follow."""
    return f"{names[0]} ({len(names)} in all)" if len(names) > 1 else "".join(names)
