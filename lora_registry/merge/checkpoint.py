"""Merging an adapter into a safetensors checkpoint: a folder or file in, a folder or file and a receipt out.

Everything is checked before a byte is written: every target has its tensor, shapes and types agree, there
is room on the disk. The output is made in a folder of its own beside its final place and takes its name at
the end; until then there is nothing under that name, and after an error nothing is left.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lora_registry import __version__
from lora_registry.adapter import Adapter, Json
from lora_registry.digest import Digest
from lora_registry.errors import UnsupportedError, UsageError
from lora_registry.findings import Finding, Severity
from lora_registry.format.files import storage_errors
from lora_registry.format.identity import content_digest
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.quantized import open_view
from lora_registry.merge.bases.requantized import open_stored
from lora_registry.merge.bases.ties import FLAG
from lora_registry.merge.companions import Companions, find_companions
from lora_registry.merge.destination import check_destination, check_room, publish
from lora_registry.merge.documents import dtype_notes, write_documents
from lora_registry.merge.dtype_rules import DtypeRules
from lora_registry.merge.engine import Written, write_weights
from lora_registry.merge.fitting.fit import Fit, fit
from lora_registry.merge.fitting.growth import check_growth, growth_notes, with_room
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.plan import Plan, make_plan
from lora_registry.merge.processor import processor_for
from lora_registry.merge.receipt import FOLDER_RECEIPT, FileRecord, Receipt, TensorRecord, receipt_path
from lora_registry.merge.requantized_plan import requantized
from lora_registry.merge.retention import check_share, require_retention
from lora_registry.merge.staging import Staging, staging
from lora_registry.merge.unread import require_kept, require_plain, unread_note
from lora_registry.merge.watch import Watch
from lora_registry.ops.mergeable import check_mergeable
from lora_registry.progress import Progress
from lora_registry.text import plural


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """A merge that was checked and can be carried out.

    Attributes:
        adapter: what is merged.
        base: into what.
        out: where the result goes.
        fitted: how the targets find their tensors.
        dtypes: element types of the output.
        plan: what every file of the output holds.
        companions: the other files of the base.
        options: what shapes the output.
        identity: content digest of the adapter.
        watch: the files of the base, as they were when they were opened.
    """

    adapter: Adapter
    base: Checkpoint
    out: Path
    fitted: Fit
    dtypes: DtypeRules
    plan: Plan
    companions: Companions
    options: MergeOptions
    identity: Digest
    watch: Watch

    @property
    def room(self) -> int:
        """Bytes that the output takes."""
        others = sum((self.base.path / name).stat().st_size for name in self.companions.copied)
        return sum(file.size for file in self.plan.files) + others

    @property
    def _cautions(self) -> tuple[Finding, ...]:
        quantized = self.base.scheme is not None
        return tuple(
            finding
            for finding in self.fitted.findings
            if quantized and finding.rule == "M-009" and finding.severity is Severity.WARNING
        )

    def cautions(self) -> tuple[str, ...]:
        """What speaks against the merge: the adapter was made for another view of the base (P-049)."""
        return tuple(finding.message for finding in self._cautions)

    def notes(self) -> tuple[str, ...]:
        """Decisions and omissions, one sentence each."""
        said = [
            f"{finding.place}: {finding.message}" if finding.place else finding.message
            for finding in self.fitted.findings
            if finding.severity is not Severity.ERROR and finding not in self._cautions
        ]
        said += growth_notes(self.base)
        if self.base.scheme is not None:
            said.append(f"the base is quantized by {self.base.scheme}: merged into the values that it stands for")
        if self.options.requantize:
            count = len({part.weight for file in self.plan.files for part in file.parts if part.weight is not None})
            where = "" if self.options.device == "cpu" else " on the CPU"
            said.append(f"{plural(count, 'changed weight')} quantized again{where}, every other byte left as it was")
        unread = unread_note(self.base)
        said += [*([] if unread is None else [unread]), *self.plan.notes]
        if self.plan.untied and "config.json" not in self.companions.copied:
            said.append(f"there is no config.json to say so: set {FLAG} to false where this checkpoint is used")
        said += dtype_notes(self.base, self.plan, self.dtypes)
        if self.companions.left_out:
            left = ", ".join(self.companions.left_out)
            said.append(f"left out, because they hold other weights than the merged ones: {left}")
        if _adapter_of(self.base) == str(self.identity):
            said.append("the base is itself the output of a merge with this adapter, whose change it now holds twice")
        if "README.md" in self.companions.copied:
            said.append("README.md is the base's model card, as it was")
        return tuple(said)


def prepare(
    adapter: Adapter,
    base_path: str | Path,
    out: str | Path,
    options: MergeOptions = MergeOptions(),  # noqa: B008 - frozen
    *,
    overwrite: bool = False,
) -> Merge:
    """Check a merge as a whole, without writing anything; see :func:`merge_checkpoint`."""
    check_mergeable(adapter, growth=True)
    if options.requantize and DtypeRules.parse(options.dtype).rules:
        raise UsageError("a merge that quantizes again writes every tensor in the type that it has: leave dtype away")
    stored = open_stored(base_path, adapter) if options.requantize else None
    base, out = open_view(base_path, adapter) if stored is None else stored.view, Path(out)
    watch = Watch([container.path for container in base.shards.values()])
    dtypes = DtypeRules.parse(options.dtype)
    check_destination(stored or base, out, overwrite=overwrite)
    fitted = fit(
        adapter,
        base,
        allow_new=options.allow_new,
        allow_growth=options.allow_growth,
        config=base.config,
        scheme=base.scheme,
        computed=base.is_computed,
    )
    require_plain(base, fitted)
    fitted.require(f"the adapter and {base.path}", exact=options.require_exact)
    check_growth(base, fitted, options.tied)
    base = with_room(base, fitted)
    plan = make_plan(base, fitted, dtypes=dtypes, tied=options.tied)
    if stored is not None:
        if base is not stored.view:
            raise UnsupportedError("rows cannot be added to a table of a checkpoint that is quantized again")
        base, plan = stored, requantized(plan, stored)
    merge = Merge(
        adapter=adapter,
        base=base,
        out=out,
        fitted=fitted,
        dtypes=dtypes,
        plan=plan,
        companions=find_companions(base) if base.is_folder else Companions((), ()),
        options=options,
        identity=content_digest(adapter),
        watch=watch,
    )
    require_kept(base, merge.plan)
    check_room(out, merge.room)
    return merge


def merge_checkpoint(
    adapter: Adapter,
    base_path: str | Path,
    out: str | Path,
    options: MergeOptions = MergeOptions(),  # noqa: B008 - frozen
    *,
    min_retention: float | None = None,
    workers: int | None = None,
    durable: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Write base + adapter as a new checkpoint in the layout of the base.

    The sum is accumulated in float32 (float64 for F32 and F64 tensors) and rounded once. Files that do not change
    are byte-identical copies; in those that do, headers and untouched tensors stay byte-identical unless
    a tensor is added or converted. Memory is that of the factors of one target and a few blocks for each worker.

    Args:
        adapter: what to merge.
        base_path: a Hugging Face folder, or one ``.safetensors`` file.
        out: the new folder, or the new ``.safetensors`` file with ``<out>.receipt.json`` beside it.
        options: what shapes the output.
        min_retention: from 0 to 1; refuse if less than this share of any tensor's change survives the rounding.
        workers: threads; None takes one for each core, four at most, or eight where a GPU computes. They do not shape
            the output.
        durable: wait until the output is on the disk before it takes its name; without, a power cut may leave a
            broken one, and a merge that is killed cannot be resumed.
        resume: go on with a merge of the same adapter, base and options into ``out`` that was killed.
        overwrite: an earlier merge (a folder with a receipt), or a file, may be replaced.
        progress: called with the bytes of the weights written and of all.

    Returns:
        The receipt, which is also written: as ``loreg-receipt.json`` in a folder.

    Raises:
        NotFoundError: the base, or the folder of ``out``, does not exist; or there is nothing to resume.
        ConflictError: ``out`` exists; a tied tensor is changed and ``tied`` is ``error``; another merge into
            ``out`` is under way; the base changed while it was being merged; or what was to be resumed is
            another merge.
        IntegrityError: less of a change survived than ``min_retention`` asks for.
        NotAllowedError: ``out`` is the base, or is inside of it.
        InvalidInputError: the adapter does not fit, the base is broken, or a result is not finite.
        InconclusiveError: nobody knows whether a changed embedding is the head as well.
        UnsupportedError: the base cannot be read, the adapter has a gate, or a change cannot be merged.
        UsageError: an option is none, or a rule of ``dtype`` is for no tensor.
        MachineError: there is no room on the disk; or ``device`` is not there, is too small, or failed.
    """
    check_share(min_retention)
    if workers is not None and workers < 1:
        raise UsageError(f"{workers} workers cannot merge anything")
    if resume and not durable:
        raise UsageError("a merge that does not wait for the disk has no journal, and cannot be resumed")
    merge = prepare(adapter, base_path, out, options, overwrite=overwrite)
    processor = processor_for(options.device)
    with storage_errors(merge.out), staging(merge.out, resume=resume) as place:
        written = write_weights(
            merge.plan,
            merge.base,
            place,
            _identity(merge),
            processor=processor,
            workers=processor.workers if workers is None else workers,
            hashed=options.hashed,
            durable=durable,
            resume=resume,
            progress=progress,
        )
        merge.watch.require_unchanged()
        require_retention(written.tensors, min_retention)
        receipt = _finish(merge, written, place)
        publish(merge.base, place, merge.out)
    return receipt


def _identity(merge: Merge) -> dict[str, Json]:
    """What a merge that is resumed must have in common with the one that was killed."""
    return {
        "adapter": str(merge.identity),
        "base": merge.watch.to_json(),
        "options": merge.options.to_json(),
        "program": f"loreg {__version__}, numpy {np.__version__}",
    }


def _finish(merge: Merge, written: Written, place: Staging) -> Receipt:
    """Write what is not weights, and the receipt."""
    inputs, outputs = list(written.inputs), list(written.outputs)
    if merge.base.is_folder:
        for read, made in write_documents(merge.base, merge.plan, merge.companions, merge.dtypes, place.files):
            inputs.append(read)
            outputs.append(made)
    else:
        outputs = [FileRecord(merge.out.name, record.size, record.digest) for record in outputs]
    receipt = Receipt(
        kind=merge.base.kind,
        adapter=merge.identity,
        verdict=merge.fitted.verdict.value,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        options=merge.options.to_json(),
        tensors=_by_origin(written.tensors, merge.fitted),
        notes=merge.notes(),
        view=None if merge.base.scheme is None else merge.base.scheme.to_json(),
        cautions=merge.cautions(),
    )
    receipt.write(place.files / FOLDER_RECEIPT, overwrite=True)
    return receipt


def _by_origin(records: tuple[TensorRecord, ...], fitted: Fit) -> tuple[TensorRecord, ...]:
    """The records with the names that the adapter has for its targets."""
    origins = {change.target.name: change.origin for change in fitted.changes}
    return tuple(replace(record, target=origins[record.target]) for record in records)


def _adapter_of(base: Checkpoint) -> str | None:
    """Content digest of the adapter that was merged into ``base``, if a receipt lies there and says so."""
    try:
        said = json.loads(receipt_path(base.path).read_bytes())
    except (OSError, ValueError):
        return None
    return said.get("adapter") if isinstance(said, dict) else None
