"""ONNX Runtime's ``.onnx_adapter``, both ways, for switchable models that loreg made.

What maps to what, and what is lost: ``spec/mappings/onnx-adapter.md``. The names in such a file are those of a
graph's inputs, so nothing is read or written without the graph: :meth:`OnnxAdapterConverter.for_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lora_registry.adapter import Adapter
from lora_registry.convert.report import Report
from lora_registry.errors import IntegrityError, InvalidInputError, UnsupportedError, UsageError
from lora_registry.format.files import refuse_existing

if TYPE_CHECKING:
    from lora_registry.onnx.slots.factors import Factors
    from lora_registry.onnx.slots.manifest import SlotManifest

_IDENTIFIER = b"TORT"


class OnnxAdapterConverter:
    """Files that ``onnxruntime.LoraAdapter`` loads (ONNX Runtime 1.20 and later, format version 1).

    Args:
        model: the switchable model that the file is for.
    """

    name = "onnx-adapter"

    def __init__(self, model: Path | None = None) -> None:
        self._model = model

    def for_model(self, model: Path) -> OnnxAdapterConverter:
        """The same converter for the adapters of one switchable model."""
        return OnnxAdapterConverter(model)

    def sniff(self, path: Path) -> bool:
        """Whether ``path`` is a FlatBuffers file with the identifier TORT."""
        try:
            with path.open("rb") as stream:
                return stream.read(8)[4:] == _IDENTIFIER
        except OSError:
            return False

    def read(self, path: Path) -> tuple[Adapter, Report]:
        """Read an adapter: the targets of the slots that the file fills, with scale 1.

        Raises:
            UsageError: no model was named.
            InvalidInputError: the file is broken, was made for another model, or does not fit this one.
            IntegrityError: its parameters are not those that it states (W-006).
            UnsupportedError: the model has no slots, or is batched.
        """
        from lora_registry.onnx.slots.adapter_file import AdapterFile
        from lora_registry.onnx.slots.factors import adapter_of

        manifest = self._slots(path)
        file = AdapterFile.read(path)
        report = Report(self.name)
        if file.model_version not in (0, manifest.model_version):
            raise InvalidInputError(
                f"{path} is for model version {file.model_version}, {self._model} has {manifest.model_version} (W-005)"
            )
        if file.model_version == 0:
            report.dropped("which base it was made for", "the file states no model version")
        elif file.adapter_version != file.checksum:
            raise IntegrityError(f"{path}: its parameters are not those that it was written with (W-006)")
        adapter = adapter_of(manifest, file.parameters)
        report.derived("scales", "1: whatever they were, B has it")
        report.kept("versions", "as origin.config")
        config = {"adapter_version": file.adapter_version, "model_version": file.model_version}
        return replace(adapter, origin={"format": self.name, "config": dict(config)}), report

    def write(self, adapter: Adapter, path: Path) -> Report:
        """Write a file that makes the model base + ``adapter``.

        Raises:
            UsageError: no model was named.
            ConflictError: ``path`` exists.
            UnsupportedError: the model has no slots, or the adapter says what a slot cannot hold.
            InvalidInputError: a target has no slot, or another shape or base; carries every finding.
        """
        from lora_registry.onnx.slots.adapter_file import AdapterFile
        from lora_registry.onnx.slots.factors import factors_for
        from lora_registry.ops.arrays import from_array

        refuse_existing(path)
        manifest = self._slots(path)
        if manifest.batched:
            raise UnsupportedError(f"{self._model} is batched: `loreg onnx stack` makes one file of several adapters")
        factors = factors_for(manifest, adapter)
        report = _losses(adapter, factors, self.name)
        parameters = {name: from_array(array) for name, array in sorted(factors.arrays.items())}
        file = AdapterFile(parameters=parameters, model_version=manifest.model_version)
        replace(file, adapter_version=file.checksum).write(path)
        return report

    def _slots(self, path: Path) -> SlotManifest:
        if self._model is None:
            raise UsageError(f"{path}: say which switchable model it is for, with --model")
        from lora_registry.onnx.slots.insert import slots_of

        return slots_of(self._model)


def _losses(adapter: Adapter, factors: Factors, name: str) -> Report:
    """Everything that the file does not say, or says otherwise."""
    report = Report(name)
    report.derived("factors", "transposed: A is (in, r), B is (r, out)")
    for scale, names in _grouped(factors.folded):
        report.derived(f"B of {names}", f"multiplied by the scale {scale!r}")
    for dtype, names in _grouped(factors.cast):
        report.derived(f"factors of {names}", f"rounded to the slot's {dtype}")
    for reason, names in _grouped(factors.unproven):
        report.dropped(f"proof of the base of {names}", str(reason))
    for what, there in (
        ("scales", any(target.scale != 1 for target in adapter)),
        ("base", adapter.base.name or adapter.base.revision or adapter.base.license),
        ("quantized view of the base", adapter.base.view),
        ("fingerprints of the base", any(target.fingerprint for target in adapter)),
        ("segments", any(target.segments for target in adapter)),
        ("how many ranks are initial", any(target.initial for target in adapter)),
        ("tokenizer", adapter.tokenizer),
        ("lineage", adapter.lineage),
        ("training", adapter.training),
        ("info", adapter.info),
        ("origin", adapter.origin and adapter.origin.get("format") != name),
        ("extensions", adapter.extensions),
        ("fields that this version does not know", adapter.extra or adapter.base.extra),
    ):
        if there:
            report.dropped(what, "the file holds named tensors and nothing else")
    return report


def _grouped(said: Mapping[str, object]) -> Iterator[tuple[object, str]]:
    """What is said of several targets, once, with the first of them and the number of the others."""
    groups: dict[object, list[str]] = {}
    for target, what in said.items():
        groups.setdefault(what, []).append(target)
    for what, names in groups.items():
        yield what, names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


converter = OnnxAdapterConverter()
"""What the entry point ``onnx-adapter`` names."""
