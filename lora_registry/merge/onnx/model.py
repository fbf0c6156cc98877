"""Merge an adapter straight into an ONNX model, without torch.

The graph is resolved as a whole before anything is computed, and written only if every target was found:
``patched == targets``, or no output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_registry import __version__
from lora_registry.adapter import Adapter, Json, Target
from lora_registry.digest import Digest
from lora_registry.errors import ConflictError, UnsupportedError, UsageError
from lora_registry.format.canonical import encode
from lora_registry.format.identity import content_digest, root_digest
from lora_registry.merge.bases.base import open_base
from lora_registry.merge.fitting.fit import Fit, Verdict, fit
from lora_registry.merge.onnx.data import Packs, plan_data
from lora_registry.merge.onnx.edits import Edits
from lora_registry.merge.onnx.files import Layout, Saved, keeps_graph, write_files
from lora_registry.merge.onnx.quantized import LEAST_RETENTION, Resolved, resolve_all
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.receipt import Receipt, receipt_path
from lora_registry.merge.retention import check_share, require_retention
from lora_registry.onnx.evidence import VALUE_MATCH
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.resolution import Resolution, ResolvedBase
from lora_registry.onnx.slots.manifest import KEY as SLOTS
from lora_registry.ops.base_model import BaseModel
from lora_registry.ops.fingerprint import target_fingerprint
from lora_registry.ops.mergeable import check_mergeable
from lora_registry.ops.tied import TiedPolicy, policy_for
from lora_registry.progress import Progress

ADAPTER_KEY = "loreg.adapter"
"""Key in ``metadata_props``: content digests of the adapters that were merged, in their order, by one space."""

BASE_KEY = "loreg.base"
"""Key in ``metadata_props``: canonical JSON ``{"fingerprint": …, "verdict": …}``, of all that the last one changed."""

TOOL_KEY = "loreg.tool"
"""Key in ``metadata_props``: name and version of what merged last."""


def merge_onnx(
    adapter: Adapter,
    model_path: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    tied: TiedPolicy = "untie",
    require_exact: bool = False,
    hashed: bool = True,
    requantize: bool = False,
    min_retention: float | None = None,
    workers: int | None = None,
    durable: bool = True,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Write a copy of an ONNX model in which the adapter is merged, and a receipt beside it.

    Every initializer keeps its dtype: W' is computed in a wider type, as in a merge into a checkpoint, and rounded
    once. Of external data, memory is that of a few blocks; see :mod:`~lora_registry.merge.onnx.files` for the files.

    Args:
        adapter: what is merged.
        model_path: the base, from any exporter; never changed.
        out: the ``.onnx`` to write. External data go to ``<out>.data`` (``<out>.<name>`` where there are several
            files), or keep their names where ``out`` has the name of the base; the receipt is
            ``<out>.receipt.json``.
        base: the checkpoint that the model was exported from. Not needed where the exporter left names; with
            it, tensors are found by their values, and every name that was found is confirmed.
        tied: what happens to a tensor that is read both as embedding rows and as the matrix of the head.
        require_exact: refuse unless fingerprints prove that this is the base the adapter was made for.
        hashed: whether the receipt gets digests of the data files; without, nobody can check the merge by it.
        requantize: merge into quantized weights and quantize them again in their own form; without, their changes
            are kept beside them, as two constants that the graph multiplies by.
        min_retention: from 0 to 1; refuse if less than this share of any target's change survives the rounding. None
            takes a half for weights that are quantized again, and nothing for others.
        workers: threads, where the base has external data; None takes one for each processor, four at most.
        durable: wait until the output is on the disk before it takes its name.
        overwrite: whether outputs may exist.
        progress: called with the bytes of external data written and of all; of a base that has none, with the
            number of initializers made anew and of all.

    Raises:
        InvalidInputError: a target was not found, or does not fit; carries a finding for each.
        UnsupportedError: the targets are quantized in a form that is not read, or their changes cannot be kept beside
            them; or operators that loreg does not know read them; the adapter has a gate, or a change cannot be merged.
        InconclusiveError: the adapter's names fit the graph in several ways.
        IntegrityError: less of a change survived than ``min_retention`` asks for.
        ConflictError: an output exists; the model has slots; or a tensor is tied, and ``tied`` is ``error``.
        NotAllowedError, NotFoundError, MachineError: see
            :func:`~lora_registry.merge.onnx.files.write_files`.
    """
    options = MergeOptions(tied=tied, require_exact=require_exact, hashed=hashed, requantize=requantize)
    merge = prepare_onnx(adapter, model_path, out, options, base=base)
    return merge.write(
        min_retention=min_retention, workers=workers, durable=durable, overwrite=overwrite, progress=progress
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxMerge:
    """A merge into an ONNX model that was checked as a whole, and writes nothing until it is told to.

    Attributes:
        adapter: content digest of what is merged.
        model: the base.
        out: the ``.onnx`` to write.
        options: what shapes the output.
        verdict: how the adapter fits.
        resolved: where its targets are.
        edits: what changes, already made in the graph.
        annotations: makes the entries for the metadata of the output, for which it reads what the targets change.
        notes: decisions that the options do not tell by themselves.
    """

    adapter: Digest
    model: OnnxModel
    out: Path
    options: MergeOptions
    verdict: Verdict
    resolved: Resolved
    edits: Edits
    annotations: Callable[[], Mapping[str, str]]
    notes: tuple[str, ...]

    def write(
        self,
        *,
        min_retention: float | None = None,
        workers: int | None = None,
        durable: bool = True,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Receipt:
        """Write the output; see :func:`merge_onnx`."""
        check_share(min_retention)
        workers = Packs().workers if workers is None else workers
        if workers < 1:
            raise UsageError(f"{workers} workers cannot merge anything")
        receipts: list[Receipt] = []

        def receipt_of(saved: Saved) -> bytes:
            self._require(min_retention)
            receipts.append(self._receipt(saved))
            return receipts[0].encode()

        write_files(
            self.model,
            self.edits,
            self.out,
            self.annotations,
            (receipt_path(self.out), receipt_of),
            workers=workers,
            hashed=self.options.hashed,
            durable=durable,
            overwrite=overwrite,
            progress=progress,
        )
        return receipts[0]

    def _require(self, least: float | None) -> None:
        """Refuse a loss, which what is quantized again has a limit for even where the caller names none."""
        records = self.edits.records()
        if least is None:
            records = tuple(record for record in records if record.parts)
        require_retention(records, LEAST_RETENTION if least is None else least)

    def _receipt(self, saved: Saved) -> Receipt:
        return Receipt(
            kind="onnx",
            adapter=self.adapter,
            verdict=self.verdict.value,
            inputs=saved.inputs,
            outputs=saved.outputs,
            options=self.options.to_json(),
            tensors=self.edits.records(),
            notes=self.notes,
            view=None if self.resolved.scheme is None else self.resolved.scheme.to_json(),
            cautions=self.resolved.cautions(again=self.options.requantize),
        )

    def to_json(self) -> dict[str, Json]:
        """What :meth:`write` would do, as a JSON object; nothing is computed for it."""
        layout = Layout.of(self.model, self.out)
        data = plan_data(self.model, self.edits.all, lambda path: layout.data[path])
        files: list[Json] = [{"name": file.name, "size": file.size} for file in data.plan.files]
        return {
            "verdict": self.verdict.value,
            "options": self.options.to_json(),
            "graph": "kept" if keeps_graph(self.edits, layout, data) else "written anew",
            "files": files,
            "bytes": {"merge": sum(edit.nbytes for edit in self.edits.all)},
            "targets": {each.target.name: each.evidence() for each in (*self.resolved.floats, *self.resolved.held)},
            "notes": list(self.notes),
        }


def prepare_onnx(
    adapter: Adapter,
    model_path: str | Path,
    out: str | Path,
    options: MergeOptions = MergeOptions(),  # noqa: B008 - frozen
    *,
    base: str | Path | None = None,
) -> OnnxMerge:
    """Check a merge as a whole, without writing anything; see :func:`merge_onnx`.

    Raises:
        UnsupportedError: an option is not for ONNX models.
        ConflictError: the model has slots.
    """
    check_mergeable(adapter)
    known = MergeOptions(
        tied=options.tied,
        require_exact=options.require_exact,
        hashed=options.hashed,
        requantize=options.requantize,
    )
    if options.to_json() != known.to_json():
        raise UnsupportedError("an ONNX model takes none of the options dtype, allow_new, allow_growth, device")
    model, again = OnnxModel.open(model_path), options.requantize
    _refuse_slots(model)
    checkpoint = open_base(base) if base is not None else None
    resolved = resolve_all(model, adapter, checkpoint, options.tied, again=again)
    fitted = _fit(adapter, resolved, checkpoint)
    fitted.require(f"adapter and {model.path}", exact=options.require_exact)
    identity = content_digest(adapter)
    edits = Edits(model, resolved.floats)
    resolved.apply(edits, again=again)
    return OnnxMerge(
        adapter=identity,
        model=model,
        out=Path(out),
        options=options,
        verdict=fitted.verdict,
        resolved=resolved,
        edits=edits,
        annotations=lambda: _metadata(resolved, identity, adapter, fitted.verdict),
        notes=(*_notes(resolved.floats, fitted, options.tied), *resolved.notes(again=again)),
    )


def _refuse_slots(model: OnnxModel) -> None:
    """Refuse a switchable model: its slots state the base they are for, and would go on taking that base's adapters."""
    if SLOTS in model.ir.metadata_props:
        raise ConflictError(f"{model.path} has slots; merge into its base, and make slots of what comes out")


def _fit(adapter: Adapter, resolved: Resolved, checkpoint: BaseModel | None) -> Fit:
    """How the adapter fits; a checkpoint whose values the graph holds stands for the graph."""
    held = {each.target.name for each in resolved.held}
    if checkpoint is not None and not held and all(VALUE_MATCH in each.rules for each in resolved.floats):
        return fit(adapter, checkpoint)
    return fit(adapter, resolved.view(), scheme=resolved.scheme, computed=held.__contains__)


def _metadata(resolved: Resolved, identity: Digest, adapter: Adapter, verdict: Verdict) -> dict[str, str]:
    """What the output says about itself; adapters that were merged earlier stay named."""
    earlier = resolved.model.ir.metadata_props.get(ADAPTER_KEY)
    view, proven = ResolvedBase(resolved.model, resolved.floats), verdict is Verdict.EXACT
    floats = {each.target.name: _print(each.target, view, proven=proven) for each in resolved.floats}
    prints = {target.name: each for target in adapter if (each := (floats | resolved.prints).get(target.name))}
    document: Json = {"fingerprint": str(root_digest(prints)), "verdict": verdict.value}
    return {
        ADAPTER_KEY: f"{earlier} {identity}" if earlier else str(identity),
        BASE_KEY: encode(document).decode(),
        TOOL_KEY: f"loreg {__version__}",
    }


def _print(target: Target, view: ResolvedBase, *, proven: bool) -> Digest:
    """The fingerprint of the tensor that ``target`` changes; where it is proven to be the stated one, that."""
    stated = target.fingerprint if proven else None
    return stated or target_fingerprint(target, view.array(target.name))


def _notes(resolutions: Sequence[Resolution], fitted: Fit, tied: TiedPolicy) -> tuple[str, ...]:
    """Decisions that the options do not tell by themselves."""
    notes = [str(finding) for finding in fitted.findings]
    for resolution in resolutions:
        name = resolution.target.name
        if resolution.tied:
            done = "both uses change" if policy_for(resolution.target, tied) == "both" else "only this use changes"
            notes.append(f"{name} is tied: it is read as embedding rows and as a matrix; {done}")
        if resolution.open_gemms:
            notes.append(f"{name} was zero and not in the graph; it was added")
    return tuple(notes)
