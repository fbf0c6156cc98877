"""What a merge did: inputs and outputs by digest, what was decided, and what became of every change.

A receipt holds no time, no host and no path, so that the same merge gives the same bytes, here and elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path

from lora_registry import __version__
from lora_registry.adapter import Json, Kind
from lora_registry.digest import Digest
from lora_registry.format.files import atomic_write
from lora_registry.ops.fidelity import Fidelity

RECEIPT_VERSION = 1
FOLDER_RECEIPT = "loreg-receipt.json"
"""Name of the receipt in an output folder; beside an output file it is :func:`receipt_path`."""

LOSS = 0.1
"""Part of a change that may be lost to rounding before the receipt warns."""


def receipt_path(out: Path) -> Path:
    """Where the receipt of the output file or folder ``out`` lies."""
    return out / FOLDER_RECEIPT if out.is_dir() else out.with_name(out.name + ".receipt.json")


@dataclass(frozen=True, slots=True, order=True)
class FileRecord:
    """One input or output file: its name inside the folder, its size in bytes, its sha256.

    The digest is None for weights of a merge that was told not to hash them.
    """

    name: str
    size: int
    digest: Digest | None

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object."""
        return {"name": self.name, "size": self.size, "digest": None if self.digest is None else str(self.digest)}


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor that was written with a change.

    Attributes:
        name: name of the tensor in the output.
        target: name of the target that changed it.
        kind: how.
        dtype: element type in the output, safetensors' name.
        fidelity: what of the change survived; None for a tensor that the base did not have.
        evidence: how the tensor was found, where names alone did not tell (ONNX).
        parts: of a quantized weight that was quantized again, the names of the stored tensors that were written;
            ``dtype`` is what its elements are then called: ``nf4``, ``gptq``, ``Q4_K``.
    """

    name: str
    target: str
    kind: Kind
    dtype: str
    fidelity: Fidelity | None
    evidence: Mapping[str, Json] = field(default_factory=dict)
    parts: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object."""
        record: dict[str, Json] = {
            "name": self.name,
            "target": self.target,
            "kind": self.kind.value,
            "dtype": self.dtype,
            "fidelity": None if self.fidelity is None else dict(self.fidelity.to_json()),
        }
        if self.evidence:
            record["evidence"] = dict(self.evidence)
        if self.parts:
            record["parts"] = list(self.parts)
        return record


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one merge did; enough to check it, and to do it again.

    Attributes:
        kind: ``safetensors`` or ``onnx``.
        adapter: content digest of the adapter.
        verdict: how the adapter fitted the base: ``exact`` or ``same-shapes``.
        inputs: the files of the base that were read.
        outputs: the files that were written, without the receipt itself.
        options: every option that shaped the output, defaults included.
        tensors: the tensors that were written with a change, by name.
        notes: decisions and omissions, one sentence each.
        view: how the base is quantized, if the merge went into the values that it stands for.
        cautions: what speaks against the merge, one sentence each.
    """

    kind: str
    adapter: Digest
    verdict: str
    inputs: tuple[FileRecord, ...]
    outputs: tuple[FileRecord, ...]
    options: Mapping[str, Json]
    tensors: tuple[TensorRecord, ...]
    notes: tuple[str, ...] = ()
    view: Mapping[str, Json] | None = None
    cautions: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know before using the output: cautions, and changes that rounding took away."""
        return self.cautions + self._immeasurable() + self._losses()

    def _immeasurable(self) -> tuple[str, ...]:
        names = [
            record.name
            for record in self.tensors
            if record.fidelity is not None and isnan(record.fidelity.relative_error)
        ]
        if not names:
            return ()
        others = f", nor of {len(names) - 1} others" if len(names) > 1 else ""
        why = "the base holds weights there that are not finite, or too large to be squared"
        return (f"{names[0]}: {why}, so that nothing says how much of the change survived{others}",)

    def _losses(self) -> tuple[str, ...]:
        lossy = [
            record for record in self.tensors if record.fidelity is not None and record.fidelity.relative_error > LOSS
        ]
        if not lossy:
            return ()
        worst = max(lossy, key=lambda record: (record.fidelity.relative_error if record.fidelity else 0, record.name))
        assert worst.fidelity is not None
        lost = min(worst.fidelity.relative_error, 1.0)
        others = f", and more than {LOSS:.0%} of {len(lossy) - 1} other changes" if len(lossy) > 1 else ""
        advice = "serve the adapter unmerged"
        if worst.parts:
            advice += ", or merge without --requantize"
        elif worst.dtype != "F32":
            advice = f"keep it in float32 (dtype touched=F32), or {advice}"
        return (f"{lost:.0%} of the change to {worst.name} is lost in {worst.dtype}{others}; {advice}",)

    def to_json(self) -> dict[str, Json]:
        """The receipt as a JSON object."""
        view: dict[str, Json] = {} if self.view is None else {"view": dict(self.view)}
        return {
            **view,
            "loreg_receipt": RECEIPT_VERSION,
            "tool": f"loreg {__version__}",
            "kind": self.kind,
            "adapter": str(self.adapter),
            "verdict": self.verdict,
            "options": dict(self.options),
            "inputs": [record.to_json() for record in sorted(self.inputs)],
            "outputs": [record.to_json() for record in sorted(self.outputs)],
            "tensors": [record.to_json() for record in sorted(self.tensors, key=lambda record: record.name)],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
        }

    def encode(self) -> bytes:
        """The JSON text that is written: equal receipts give equal bytes."""
        return (json.dumps(self.to_json(), indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Write the receipt to ``path``, whole or not at all.

        Raises:
            ConflictError: ``path`` exists and ``overwrite`` is false.
        """
        with atomic_write(path, overwrite=overwrite) as stream:
            stream.write(self.encode())
