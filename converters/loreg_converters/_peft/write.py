"""Writing a PEFT folder: planned, composed, written beside its place, read back, and only then renamed."""

from __future__ import annotations

import json
from pathlib import Path

from lora_registry.adapter import Adapter, Json, Kind, Target
from lora_registry.convert.report import Report
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.container import encode_tensors
from lora_registry.format.features import GATE, required_features
from lora_registry.format.files import atomic_write, refuse_existing, staging_folder, storage_errors, sync_folder
from loreg_converters._peft.compose import compose, expert_swaps, given_names, original_config
from loreg_converters._peft.files import CONFIG, WEIGHTS
from loreg_converters._peft.plan import Plan, make_plan
from loreg_converters._peft.read import read_folder


def write_folder(adapter: Adapter, folder: Path) -> Report:
    """Write ``adapter_model.safetensors`` and ``adapter_config.json`` into a new folder.

    Raises:
        ConflictError: ``folder`` exists.
        UnsupportedError: PEFT cannot say what the adapter says; nothing is left behind.
    """
    refuse_existing(folder)
    report = Report("peft")
    _refuse_features(adapter)
    _note_losses(adapter, report)
    original = original_config(adapter, report)
    parameters, saved = given_names(adapter, original)
    plan = make_plan(adapter, parameters=parameters, saved=saved, swap=expert_swaps(adapter, original, report))
    config = compose(adapter, plan, original, report)
    if original is None:
        report.derived(CONFIG, "made from the targets; the adapter did not come from PEFT")
    with storage_errors(folder), staging_folder(folder) as staging:
        _write_files(staging, plan, config)
        _read_back(adapter, staging, plan)
        sync_folder(staging)
        staging.rename(folder)
        sync_folder(folder.parent)
    return report


def _refuse_features(adapter: Adapter) -> None:
    """PEFT has activated LoRA, which is the gate, and of all other features none."""
    needed = set(required_features(adapter)) - ({GATE} if adapter.gate else set())
    if needed:
        raise UnsupportedError(f"the adapter requires {', '.join(sorted(needed))}, which PEFT's LoRA cannot say")


def _note_losses(adapter: Adapter, report: Report) -> None:
    for what, there in (
        ("info", adapter.info),
        ("base license", adapter.base.license),
        ("quantized view of the base", adapter.base.view),
        ("tokenizer", adapter.tokenizer),
        ("lineage", adapter.lineage),
        ("training", adapter.training),
        ("extensions", adapter.extensions),
        ("fingerprints of the base", any(target.fingerprint for target in adapter)),
        ("shape of a table of trained rows", any(_unsaid(target) for target in adapter)),
        ("segments", any(target.segments for target in adapter)),
        ("how many ranks are initial", any(target.initial for target in adapter)),
        ("fields that this version does not know", adapter.extra or adapter.base.extra),
    ):
        if there:
            report.dropped(what, "PEFT has no place for it")


def _write_files(folder: Path, plan: Plan, config: dict[str, Json]) -> None:
    with atomic_write(folder / WEIGHTS) as stream:
        for chunk in encode_tensors(plan.tensors, {"format": "pt"}):
            stream.write(chunk)
    with atomic_write(folder / CONFIG) as stream:
        stream.write(json.dumps(config, indent=2, sort_keys=True, allow_nan=False).encode("utf-8"))


def _read_back(adapter: Adapter, folder: Path, plan: Plan) -> None:
    """What was written says what was meant, or it is not handed over."""
    try:
        again, _ = read_folder(folder)
    except InvalidInputError as error:
        details = "; ".join(str(finding) for finding in error.findings) or str(error)
        raise UnsupportedError(f"PEFT's files cannot say this adapter unambiguously: {details}") from None
    for before, after in zip(adapter, again, strict=False):
        if _meaning(before, plan) != _meaning(after, plan):
            raise UnsupportedError(
                f"PEFT's files cannot say {before.name}: it would be read as {_meaning(after, plan)}"
            )
    if adapter.gate != again.gate:
        raise UnsupportedError(f"PEFT's files would have the gate {list(again.gate)}, not {list(adapter.gate)}")
    if len(adapter) != len(again):
        raise UnsupportedError(f"PEFT's files would hold {len(again)} targets, not {len(adapter)}")


def _meaning(target: Target, plan: Plan) -> tuple[object, ...]:
    """Everything but the tensors' bytes and what PEFT decides by itself."""
    shapes = {} if target.name in plan.exchanged else {role: tensor.shape for role, tensor in target.tensors.items()}
    # PEFT asks each module for the order of its axes, and each embedding for the number of its rows.
    shape = [] if _unsaid(target) else sorted(target.shape or ())
    return target.name, target.kind, target.scale, target.groups, target.rows, shape, shapes


def _unsaid(target: Target) -> bool:
    """Whether the target has a shape that no tensor of PEFT's tells."""
    return target.kind is Kind.TOKENS and target.shape is not None
