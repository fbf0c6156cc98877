"""Merge an adapter straight into an ONNX model, without torch.

The graph is resolved as a whole before anything is computed, and written only if every target was found:
``patched == targets``, or no output.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lora_registry import __version__
from lora_registry.adapter import Adapter, Json, Target
from lora_registry.digest import Digest
from lora_registry.errors import InvalidInputError
from lora_registry.format.canonical import encode
from lora_registry.format.identity import content_digest, root_digest
from lora_registry.merge.base import open_base
from lora_registry.merge.fit import Fit, Verdict, fit
from lora_registry.merge.receipt import FileRecord, Receipt, TensorRecord, receipt_path
from lora_registry.merge.retention import check_share, require_retention
from lora_registry.onnx.evidence import VALUE_MATCH
from lora_registry.onnx.model import OnnxModel, dtype_of
from lora_registry.onnx.patch import Maker, Patch
from lora_registry.onnx.resolution import Carrier, Resolution, ResolvedBase
from lora_registry.onnx.resolve import resolve
from lora_registry.onnx.save import SavedFile, save
from lora_registry.onnx.values import oriented
from lora_registry.ops.arrays import Array, round_to
from lora_registry.ops.change import merged
from lora_registry.ops.fidelity import Fidelity, measure
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
    min_retention: float | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Write a copy of an ONNX model in which the adapter is merged, and a receipt beside it.

    Every initializer keeps its dtype: W' is computed in float32 (float64 for a double base) and rounded once.

    Args:
        adapter: what is merged.
        model_path: the base, from any exporter; never changed.
        out: the ``.onnx`` to write. External data go to ``<out>.data``, the receipt to ``<out>.receipt.json``.
        base: the checkpoint that the model was exported from. Not needed where the exporter left names; with
            it, tensors are found by their values, and every name that was found is confirmed.
        tied: what happens to a tensor that is read both as embedding rows and as the matrix of the head.
        require_exact: refuse unless fingerprints prove that this is the base the adapter was made for.
        min_retention: from 0 to 1; refuse if less than this share of any target's change survives the rounding.
        overwrite: whether outputs may exist.
        progress: called with the number of initializers made anew, and of all.

    Raises:
        InvalidInputError: a target was not found, or does not fit; carries a finding for each.
        UnsupportedError: the targets are quantized, or read by operators that loreg does not know; the adapter has
            a gate, or a change cannot be merged.
        InconclusiveError: the adapter's names fit the graph in several ways.
        IntegrityError: less of a change survived than ``min_retention`` asks for.
        ConflictError: an output exists; or a tensor is tied, and ``tied`` is ``error``.
        NotAllowedError, NotFoundError, MachineError: see :func:`lora_registry.onnx.save.save`.
    """
    check_share(min_retention)
    check_mergeable(adapter)
    model, out = OnnxModel.open(model_path), Path(out)
    checkpoint = open_base(base) if base is not None else None
    resolutions = resolve(model, adapter, base=checkpoint, tied=tied)
    view = ResolvedBase(model, resolutions)
    confirmed = checkpoint is not None and all(VALUE_MATCH in resolution.rules for resolution in resolutions)
    fitted = fit(adapter, checkpoint if checkpoint is not None and confirmed else view)
    fitted.require(f"adapter and {model.path}", exact=require_exact)

    inputs = tuple(FileRecord(path.name, path.stat().st_size, Digest.of_file(path)) for path in model.files())
    merging = Merging(model, view)
    for resolution in resolutions:
        merging.apply(resolution)
    identity = content_digest(adapter)
    merging.patch.annotate(_metadata(model, identity, view, adapter, fitted.verdict))

    def receipt_for(saved: Sequence[SavedFile]) -> Receipt:
        require_retention(merging.records(), min_retention)
        return Receipt(
            kind="onnx",
            adapter=identity,
            verdict=fitted.verdict.value,
            inputs=inputs,
            outputs=tuple(FileRecord(file.name, file.size, file.digest) for file in saved),
            options={"tied": tied, "require_exact": require_exact, "dtype": None},
            tensors=merging.records(),
            notes=_notes(resolutions, fitted, tied),
        )

    sidecar = (receipt_path(out), lambda saved: receipt_for(saved).encode())
    return receipt_for(save(merging.patch, out, sidecar=sidecar, overwrite=overwrite, progress=progress))


def _metadata(
    model: OnnxModel, identity: Digest, view: ResolvedBase, adapter: Adapter, verdict: Verdict
) -> dict[str, str]:
    """What the output says about itself; adapters that were merged earlier stay named."""
    earlier = model.ir.metadata_props.get(ADAPTER_KEY)
    prints = {target.name: _print(target, view, proven=verdict is Verdict.EXACT) for target in adapter}
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


class Merging:
    """The edits of one adapter on one resolved graph, and what became of every change.

    Attributes:
        patch: the edits.
    """

    def __init__(self, model: OnnxModel, base: ResolvedBase) -> None:
        self.patch = Patch(model)
        self._base = base
        self._fidelity: dict[str, Fidelity] = {}  # by target; filled when the files are written
        self._written: list[tuple[str, Resolution, str]] = []  # initializer, what it holds, dtype

    def apply(self, resolution: Resolution) -> None:
        """Change every initializer that holds the target, or give its uses one of their own."""
        target = resolution.target
        weight = self._base.array(target.name)
        if not resolution.carriers:
            maker = self._maker(target, weight, self._base.dtype(target.name), transposed=False)
            bias = self.patch.add_bias(resolution.open_gemms, target.name, weight.shape[0], maker)
            self._written.append((str(bias.name), resolution, self._base.dtype(target.name)))
            return
        for carrier in resolution.carriers:
            holder = carrier.value
            maker = self._maker(target, weight, dtype_of(holder), transposed=carrier.transposed)
            if carrier.shared:
                holder = self.patch.clone(holder, carrier.sites, _clone_name(target, carrier), maker)
            else:
                self.patch.replace(holder, maker)
            self.patch.keep_manifest_true(resolution, holder, carrier.transposed)
            self._written.append((str(holder.name), resolution, dtype_of(holder)))

    def records(self) -> tuple[TensorRecord, ...]:
        """One record for every initializer that was written; complete once the files are."""
        return tuple(
            TensorRecord(
                name=name,
                target=resolution.target.name,
                kind=resolution.target.kind,
                dtype=dtype,
                fidelity=self._fidelity[resolution.target.name],
                evidence=resolution.evidence(),
            )
            for name, resolution, dtype in self._written
        )

    def _maker(self, target: Target, weight: Array, dtype: str, *, transposed: bool) -> Maker:
        def make() -> Array:
            wanted = merged(target, weight)
            written = round_to(wanted, dtype)
            if not np.isfinite(written).all() and np.isfinite(wanted).all():
                raise InvalidInputError(f"{target.name}: the merged weight does not fit into {dtype}")
            before = weight.astype(wanted.dtype, copy=False)
            self._fidelity[target.name] = measure(before, wanted, written)
            return oriented(written, transposed)

        return make


def _clone_name(target: Target, carrier: Carrier) -> str:
    """Only what is stored as in the checkpoint takes the checkpoint's name: the resolver relies on it."""
    return f"{target.name}.transposed" if carrier.transposed else target.name
