"""Adapters that changed their base: relative to it as it was, where the factors they began with lie beside them.

PiSSA (Meng et al. 2024, arXiv 2404.02948) takes s·B₀·A₀ out of the base and trains B and A from B₀ and A₀. With the
base as people have it the change is s·(B·A - B₀·A₀), a product of twice the rank: A over A₀, and B beside -B₀, as
PEFT's own conversion has it (``subtract_mutated_init``, PEFT 0.21.2). LLaMA-Factory leaves B₀ and A₀ in a folder of
their own (``PissaConvertCallback``, train/callbacks.py, 2025).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lora_registry.adapter import Adapter, Json, Kind, Target
from lora_registry.errors import UnsupportedError
from lora_registry.findings import Finding
from lora_registry.ops.arrays import from_array, to_array
from loreg_converters._peft.files import CONFIG
from loreg_converters._peft.problems import broken, refuse

INITIAL = "pissa_init"
"""What LLaMA-Factory calls the folder of the adapter before the first step."""


_DISGUISED = frozenset({INITIAL, "pissa_backup"})
"""Folders of LLaMA-Factory whose config says that they are plain, and which belong to the base without B₀·A₀."""


def refuse_disguised(folder: Path) -> None:
    """Refuse a PiSSA adapter that calls itself a plain one.

    Raises:
        UnsupportedError: ``folder`` is one that LLaMA-Factory keeps for itself.
    """
    if folder.name in _DISGUISED and (folder.parent / INITIAL / CONFIG).is_file():
        raise UnsupportedError(
            f"{folder}: LLaMA-Factory keeps it for the base without its initial factors, though its config does not "
            f"say so; convert {folder.parent.name or 'the folder around it'} or pissa_converted"
        )


def initial_folder(folder: Path, raw: Mapping[str, Json]) -> Path | None:
    """The folder of the initial factors, where the config speaks of PiSSA and there is one."""
    init = raw.get("init_lora_weights")
    is_pissa = isinstance(init, str) and init.lower().startswith("pissa")
    return folder / INITIAL if is_pissa and (folder / INITIAL / CONFIG).is_file() else None


def relative_to_base(trained: Adapter, initial: Adapter) -> Adapter:
    """``trained`` as a change of the base from which ``initial`` had not been taken yet; exact.

    Raises:
        InvalidInputError: the two do not change the same modules in the same shapes and scales.
    """
    began = {target.name: target for target in initial if target.kind is not Kind.FULL}
    factored = {target.name for target in trained if "A" in target.tensors}
    findings = [
        broken(name, f"is in one of the adapter and {INITIAL} only") for name in sorted(factored ^ began.keys())
    ]
    targets = []
    for target in trained:
        before = began.get(target.name)
        if before is None or target.name not in factored:
            targets.append(target)
        elif problem := _difference(target, before):
            findings.append(problem)
        else:
            targets.append(_without(target, before))
    refuse(INITIAL, findings)
    return replace(trained, targets=tuple(targets))


def _difference(target: Target, before: Target) -> Finding | None:
    if target.tensors.keys() | before.tensors.keys() != {"A", "B"} or target.kind is not Kind.LINEAR:
        return broken(target.name, "PiSSA begins with two factors of a matrix, and nothing else")
    for what, ours, theirs in (
        ("layout", target.layout, before.layout),
        ("shape", target.shape, before.shape),
        ("scale", target.scale, before.scale),
        ("type of A", target.tensors["A"].dtype, before.tensors["A"].dtype),
        ("type of B", target.tensors["B"].dtype, before.tensors["B"].dtype),
    ):
        if ours != theirs:
            return broken(target.name, f"another {what} than in {INITIAL}: {ours} and {theirs}")
    return None


def _without(target: Target, before: Target) -> Target:
    """s·(B·A - B₀·A₀), the initial ranks last."""
    a = np.concatenate([to_array(each.tensors["A"]) for each in (target, before)])
    b = np.concatenate([to_array(target.tensors["B"]), -to_array(before.tensors["B"])], axis=1)
    return replace(target, tensors={"A": from_array(a), "B": from_array(b)}, initial=before.rank or 0)
