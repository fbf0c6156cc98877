"""Merging an adapter into a safetensors checkpoint: a folder or file in, a folder or file and a receipt out.

Everything is checked before a byte is written: every target has its tensor, shapes and types agree, there
is room on the disk. The output is made in a folder of its own beside its final place and takes its name at
the end; until then there is nothing under that name, and after an error nothing is left.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from threadpoolctl import threadpool_limits

from lora_registry.adapter import Adapter, Json
from lora_registry.digest import Digest
from lora_registry.dtypes import BY_TORCH, DTYPES
from lora_registry.errors import ConflictError, MachineError, NotAllowedError, NotFoundError, UsageError
from lora_registry.findings import Severity
from lora_registry.format.files import refuse_existing, staging_folder, storage_errors, sync_folder
from lora_registry.format.identity import content_digest
from lora_registry.merge.base import Checkpoint, open_base
from lora_registry.merge.companions import Companions, find_companions
from lora_registry.merge.fit import Fit, fit
from lora_registry.merge.plan import Plan, make_plan
from lora_registry.merge.receipt import FOLDER_RECEIPT, FileRecord, Receipt, receipt_path
from lora_registry.merge.shard import write_file
from lora_registry.merge.stream import copy_file
from lora_registry.merge.ties import FLAG, untied
from lora_registry.ops.mergeable import check_mergeable
from lora_registry.ops.tied import TiedPolicy
from lora_registry.progress import Counted, Progress

_SPARE = 16 << 20  # bytes that must stay free: receipt, folders, journal


def merge_checkpoint(
    adapter: Adapter,
    base_path: str | Path,
    out: str | Path,
    *,
    dtype: str | None = None,
    tied: TiedPolicy = "untie",
    allow_new: bool = False,
    require_exact: bool = False,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Receipt:
    """Write base + adapter as a new checkpoint in the layout of the base.

    The sum is accumulated in float32 (float64 for F64 tensors) and rounded once. Files that do not change
    are byte-identical copies; in those that do, headers and untouched tensors stay byte-identical unless
    a tensor is added or converted. Memory is that of the adapter's largest target and a few blocks.

    Args:
        adapter: what to merge.
        base_path: a Hugging Face folder, or one ``.safetensors`` file.
        out: the new folder, or the new ``.safetensors`` file with ``<out>.receipt.json`` beside it.
        dtype: ``F32``, ``BF16``, ``F16`` or ``F64`` (or torch's names) for every floating-point tensor of the
            output, and for the configuration; None keeps what each tensor has.
        tied: what happens where the adapter changes one of two tied tensors; see
            :data:`~lora_registry.ops.tied.TiedPolicy`.
        allow_new: full targets may bring tensors that the base does not have.
        require_exact: refuse unless fingerprints prove that this is the base the adapter was made for.
        progress: called with the bytes of the weights written and of all.
        overwrite: an earlier merge (a folder with a receipt), or a file, may be replaced.

    Returns:
        The receipt, which is also written: as ``loreg-receipt.json`` in a folder.

    Raises:
        NotFoundError: the base, or the folder of ``out``, does not exist.
        ConflictError: ``out`` exists; or a tied tensor is changed and ``tied`` is ``error``.
        NotAllowedError: ``out`` is the base, or is inside of it.
        InvalidInputError: the adapter does not fit, the base is broken, or a result is not finite.
        InconclusiveError: nobody knows whether a changed embedding is the head as well.
        UnsupportedError: the base is quantized or pickled, the adapter has a gate, or a change cannot be merged.
        MachineError: there is no room on the disk.
    """
    check_mergeable(adapter)
    base, out = open_base(base_path), Path(out)
    chosen = None if dtype is None else _dtype(dtype)
    _check_out(base, out, overwrite)
    fitted = fit(adapter, base, allow_new=allow_new)
    fitted.require(f"the adapter and {base.path}", exact=require_exact)
    plan = make_plan(adapter, base, fitted, dtype=chosen, tied=tied)
    others = find_companions(base) if base.is_folder else Companions((), ())
    _check_room(base, plan, others, out)
    options: dict[str, Json] = {"dtype": chosen, "tied": tied, "allow_new": allow_new, "require_exact": require_exact}
    # The threads of merge.stream share the cores with the arithmetic; BLAS with threads of its own is slower.
    with storage_errors(out), threadpool_limits(1, "blas"), staging_folder(out) as staging:
        inputs, outputs, tensors = [], [], []
        written_bytes = Counted(progress, sum(file.size for file in plan.files))
        for file in plan.files:
            read, written, records = write_file(file, base, staging / file.name, written_bytes)
            inputs.append(read)
            outputs.append(written)
            tensors += records
        if base.is_folder:
            for read, written in _write_others(base, plan, others, chosen, staging):
                inputs.append(read)
                outputs.append(written)
        elif out.name != base.path.name:
            outputs = [FileRecord(out.name, record.size, record.digest) for record in outputs]
        receipt = Receipt(
            kind=base.kind,
            adapter=content_digest(adapter),
            verdict=fitted.verdict.value,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            options=options,
            tensors=tuple(tensors),
            notes=_notes(content_digest(adapter), base, fitted, plan, others),
        )
        receipt.write(staging / FOLDER_RECEIPT)
        _publish(base, staging, out, overwrite)
    return receipt


def _dtype(name: str) -> str:
    known = DTYPES.get(name) or BY_TORCH.get(name)
    if known is None or not known.is_wide_float:
        raise UsageError(f"{name!r} is no type to merge into: F32, BF16, F16 or F64")
    return known.name


def _check_out(base: Checkpoint, out: Path, overwrite: bool) -> None:
    if not base.is_folder and out.suffix != ".safetensors":
        raise UsageError(f"{out}: the base is one file, so the output must be called *.safetensors")
    if base.is_folder and out.suffix in (".onnx", ".safetensors"):
        hint = "; merge into the .onnx that loreg export makes of it" if out.suffix == ".onnx" else ""
        raise UsageError(f"{out}: the base is a folder, so the output is one too, and this is the name of a file{hint}")
    if not out.parent.is_dir():
        raise NotFoundError(f"no such folder: {out.parent}")
    here, there = out.resolve(), base.path.resolve()
    if here == there or (base.is_folder and there in here.parents) or here in there.parents:
        raise NotAllowedError(f"{out} is, or lies in, or holds the base, which is never changed; choose another place")
    if not overwrite:
        refuse_existing(out, *(() if base.is_folder else (receipt_path(out),)))
    replaceable = (out / FOLDER_RECEIPT).is_file() if base.is_folder else not out.is_dir()
    if os.path.lexists(out) and not replaceable:
        raise ConflictError(f"{out} exists and is not the output of a merge; remove it or choose another name")


def _check_room(base: Checkpoint, plan: Plan, others: Companions, out: Path) -> None:
    needed = sum(file.size for file in plan.files) + sum((base.path / name).stat().st_size for name in others.copied)
    free = shutil.disk_usage(out.parent).free
    if needed + _SPARE > free:
        raise MachineError(
            f"{out} needs {needed:,} bytes, {_SPARE:,} to spare, and {out.parent} has {free:,} free; "
            "nothing was written"
        )


def _write_others(
    base: Checkpoint, plan: Plan, others: Companions, dtype: str | None, staging: Path
) -> Iterator[tuple[FileRecord, FileRecord]]:
    """Copy the companions; rewrite the configuration and the index where the merge made them untrue."""
    for name in others.copied:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        config = _config(base, plan, dtype) if name == "config.json" else base.config
        if config != base.config:
            yield _rewrite(base.path / name, staging / name, config)
        else:
            record = copy_file(base.path / name, staging / name)
            record = FileRecord(name, record.size, record.digest)
            yield record, record
    if base.index is not None:
        target = staging / base.index.name
        if plan.added or dtype is not None:
            yield _rewrite(base.index, target, _index(base.index, plan))
        else:
            record = copy_file(base.index, target)
            yield record, record


def _config(base: Checkpoint, plan: Plan, dtype: str | None) -> dict[str, Json]:
    config = untied(base.config) if plan.untied else dict(base.config)
    if dtype is not None:
        config.update({key: DTYPES[dtype].torch for key in ("dtype", "torch_dtype") if key in config})
    return config


def _index(path: Path, plan: Plan) -> dict[str, Json]:
    index: dict[str, Json] = json.loads(path.read_bytes())
    metadata = index.get("metadata")
    total = sum(part.entry.end - part.entry.begin for file in plan.files for part in file.parts)
    index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
    index["weight_map"] = {part.name: file.name for file in plan.files for part in file.parts}
    return index


def _rewrite(source: Path, target: Path, document: Mapping[str, Json]) -> tuple[FileRecord, FileRecord]:
    """Write ``document`` in the way transformers writes its JSON files."""
    before = source.read_bytes()
    after = (json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")
    with target.open("xb") as stream:
        stream.write(after)
        stream.flush()
        os.fsync(stream.fileno())
    name = target.name
    return FileRecord(name, len(before), Digest.of(before)), FileRecord(name, len(after), Digest.of(after))


def _adapter_of(base: Checkpoint) -> str | None:
    """Content digest of the adapter that was merged into ``base``, if a receipt lies there and says so."""
    try:
        said = json.loads(receipt_path(base.path).read_bytes())
    except (OSError, ValueError):
        return None
    return said.get("adapter") if isinstance(said, dict) else None


def _notes(adapter: Digest, base: Checkpoint, fitted: Fit, plan: Plan, others: Companions) -> tuple[str, ...]:
    said = [
        f"{finding.place}: {finding.message}" if finding.place else finding.message
        for finding in fitted.findings
        if finding.severity is not Severity.ERROR
    ]
    said += plan.notes
    if plan.untied and "config.json" not in others.copied:
        said.append(f"there is no config.json to say so: set {FLAG} to false where this checkpoint is used")
    if others.left_out:
        said.append(f"left out, because they hold other weights than the merged ones: {', '.join(others.left_out)}")
    if _adapter_of(base) == str(adapter):
        said.append("the base is itself the output of a merge with this adapter, whose change it now holds twice")
    if "README.md" in others.copied:
        said.append("README.md is the base's model card, as it was")
    return tuple(said)


def _publish(base: Checkpoint, staging: Path, out: Path, overwrite: bool) -> None:
    """Give what was made its final name."""
    if not base.is_folder:
        (staging / FOLDER_RECEIPT).replace(receipt_path(out))
        (staging / base.path.name).replace(out)
    else:
        for folder in [*(path for path in staging.rglob("*") if path.is_dir()), staging]:
            sync_folder(folder)
        if overwrite and out.is_dir():
            retired = staging.with_suffix(".old")
            out.rename(retired)
            staging.rename(out)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            staging.rename(out)
    sync_folder(out.parent)
