"""What an adapter feeds to the slots of a switchable model, on the device where the model runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_registry.errors import IntegrityError, InvalidInputError, UnsupportedError, refusal
from lora_registry.format.data_rules import check_data
from lora_registry.onnx.slots.manifest import SlotManifest
from lora_registry.runtime.ort import value_of
from lora_registry.runtime.sources import Source, read_source

ORT_SUFFIX = ".onnx_adapter"


@dataclass(frozen=True, slots=True)
class SlotValues:
    """The factors of one adapter.

    Attributes:
        values: name of the input to its ``OrtValue``, uploaded once.
        nbytes: bytes that they take.
    """

    values: Mapping[str, Any]
    nbytes: int

    @classmethod
    def of(cls, arrays: Mapping[str, Any], provider: str) -> SlotValues:
        """Upload numpy arrays."""
        values = {name: value_of(array, provider=provider) for name, array in arrays.items()}
        return cls(values, sum(int(array.nbytes) for array in arrays.values()))


def manifest_of(session: Any, path: Path) -> SlotManifest:
    """The slots of the model that ``session`` runs.

    Raises:
        UnsupportedError: it has none.
    """
    manifest = SlotManifest.of(session.get_modelmeta().custom_metadata_map)
    if manifest is None:
        raise UnsupportedError(f"{path} has no slots; `loreg onnx slots` makes a switchable model of it")
    return manifest


def arrays_of(manifest: SlotManifest, source: Source) -> dict[str, Any]:
    """The factors of ``source`` as numpy arrays by input, in memory, checked against the slots.

    Args:
        manifest: the model's slots.
        source: an ``.onnx_adapter`` file for the model, or an adapter in any other form.

    Raises:
        InvalidInputError: it is for another model, or does not fit the slots; carries every finding.
        IntegrityError: the bytes are not those that the file was written with (W-006, R-035).
        UnsupportedError: a target that no slot can hold.
        NotFoundError: nothing is there.
    """
    from lora_registry.onnx.slots.factors import factors_for

    if isinstance(source, (str, Path)) and Path(source).suffix == ORT_SUFFIX:
        return _of_file(manifest, Path(source))
    adapter = read_source(source)
    if findings := check_data(adapter):
        raise refusal("the adapter", findings)
    return factors_for(manifest, adapter).arrays


def _of_file(manifest: SlotManifest, path: Path) -> dict[str, Any]:
    from lora_registry.onnx.slots.adapter_file import AdapterFile
    from lora_registry.onnx.slots.factors import check_inputs
    from lora_registry.ops.arrays import to_array

    file = AdapterFile.read(path)
    if file.model_version != manifest.model_version:
        raise InvalidInputError(
            f"{path} is for model version {file.model_version}, the model has {manifest.model_version} (W-005)"
        )
    if file.adapter_version != file.checksum:
        raise IntegrityError(f"{path}: its parameters are not those that it was written with (W-006)")
    if findings := list(check_inputs(manifest, file.parameters)):
        raise InvalidInputError.from_findings(f"{path} and the model do not fit", findings)
    return {name: np.array(to_array(tensor)) for name, tensor in file.parameters.items()}


def overlap(names: Iterable[tuple[str, Iterable[str]]]) -> tuple[str, str, str] | None:
    """The first input that two adapters feed: both adapters, and the input; None where there is none."""
    owners: dict[str, str] = {}
    for adapter, inputs in names:
        for each in inputs:
            owner = owners.setdefault(each, adapter)
            if owner != adapter:
                return owner, adapter, each
    return None
