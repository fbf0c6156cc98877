"""Who made it, on what, and under which license: rules A-020 to A-027."""

from __future__ import annotations

from collections.abc import Iterator

from lora_registry.adapter import SCALED, Adapter, Json
from lora_registry.audit.licenses import as_spdx
from lora_registry.audit.rules import found
from lora_registry.convert.report import Report
from lora_registry.findings import Finding
from lora_registry.text import printable


def check_provenance(adapter: Adapter, report: Report | None) -> Iterator[Finding]:
    """A-020 to A-027.

    Args:
        adapter: the adapter.
        report: of the conversion that made it, where there was one.
    """
    base = adapter.base
    if not base.name:
        yield found("A-020", "base/name", "is not stated")
    if not base.revision:
        yield found("A-021", "base/revision", "is not stated")
    yield from _license("A-022", "base/license", base.license)
    yield from _license("A-023", "info/license", adapter.info.get("license"))
    datasets = adapter.training.get("datasets")
    for index, dataset in enumerate(datasets if isinstance(datasets, list) else ()):
        if isinstance(dataset, dict) and "license" in dataset:
            yield from _license("A-024", f"training/datasets/{index}/license", dataset["license"])
    yield from _scale(adapter)
    bare = sum(target.fingerprint is None for target in adapter)
    if bare:
        yield found(
            "A-026", "targets", f"{bare} of {len(adapter)} have none: cannot tell another base of the same shape"
        )
    for entry in report.losses if report is not None else ():
        message = f"not in the adapter: {printable(entry.reason, 200)}"
        yield found("A-027", printable(f"{report.format if report else ''}/{entry.subject}", 256), message)


def _license(missing: str, place: str, text: Json) -> Iterator[Finding]:
    if not isinstance(text, str) or not text.strip():
        yield found(missing, place, "is not stated")
    elif as_spdx(text) is None:
        yield found("A-024", place, f"{printable(text, 80)!r} is no SPDX expression")


def _scale(adapter: Adapter) -> Iterator[Finding]:
    scales = {target.scale for target in adapter if target.kind in SCALED}
    if scales and not _tells_scale(dict(adapter.origin)):
        what = f"every scale is {scales.pop():g}" if len(scales) == 1 else f"there are {len(scales)} different scales"
        yield found("A-025", "origin", f"{what}, and no alpha or scale of a trainer is recorded")


def _tells_scale(record: Json) -> bool:
    """Whether a key anywhere in ``record`` speaks of alpha (PEFT, kohya, torchtune) or scale (MLX)."""
    if isinstance(record, dict):
        named = ("alpha" in key.lower() or "scal" in key.lower() for key, value in record.items() if value is not None)
        return any(named) or any(_tells_scale(value) for value in record.values())
    return isinstance(record, list) and any(_tells_scale(item) for item in record)
