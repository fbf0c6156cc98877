"""The format's own rules on an adapter that is already in memory, wherever it came from.

A native file has passed most of them when it was opened. An adapter that a converter made has not, and the
data itself (R-035, R-045) is looked at by no reader.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_registry.adapter import Adapter, Json, Target
from lora_registry.audit.report import Checked, Skipped
from lora_registry.findings import Finding
from lora_registry.format.data_rules import check_data
from lora_registry.format.document import tensor_key
from lora_registry.format.rules import check_document

_DATA = "R-035"  # bytes that differ from their digest are still numbers of the right shape


def check_structure(adapter: Adapter, document: Mapping[str, Json]) -> tuple[list[Finding], Checked]:
    """Everything that ``adapter`` breaks of R-009 and R-013 to R-045; reads all of its data.

    Args:
        adapter: the adapter.
        document: its JSON document, :func:`lora_registry.format.document.to_document`.
    """
    tensors = {
        tensor_key(target.name, role): (tensor.dtype, tensor.shape)
        for target in adapter
        for role, tensor in target.tensors.items()
    }
    findings = [*check_document(dict(document), tensors), *check_data(adapter)]
    return findings, Checked("tensors", len(tensors), "the rules R-009 and R-013 to R-045, and every stated digest")


def sound_targets(adapter: Adapter, findings: list[Finding]) -> tuple[list[Target], list[Skipped]]:
    """The targets whose numbers can be read, and what is left out because its structure is broken."""
    places = [finding.place for finding in findings if finding.rule != _DATA]
    sound: list[Target] = []
    skipped: list[Skipped] = []
    for target in adapter:
        own = (f"targets/{target.name}/", f"{target.name}/")
        if any(place.startswith(own) or place == f"targets/{target.name}" for place in places):
            skipped.append(Skipped(f"numbers of {target.name}", "its structure is broken; see the findings"))
        else:
            sound.append(target)
    return sound, skipped
