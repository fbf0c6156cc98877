"""A merge into an ONNX model done again from its receipt: the same bytes, or nothing."""

from __future__ import annotations

from pathlib import Path

from lora_registry import __version__
from lora_registry.adapter import Adapter
from lora_registry.errors import IntegrityError, UnsupportedError, UsageError
from lora_registry.format.files import claim, refuse_existing, staging_folder, storage_errors, sync_folder
from lora_registry.format.identity import content_digest
from lora_registry.merge.onnx.model import prepare_onnx
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.receipt import Receipt, receipt_path
from lora_registry.merge.recorded import read_receipt, require_files
from lora_registry.progress import Progress
from lora_registry.text import listed


def replay_onnx(
    receipt_file: Path,
    adapter: Adapter,
    model: Path,
    out: Path,
    *,
    base: Path | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Merge again as a receipt says, and keep the result only if every file is the one that it names.

    Args:
        receipt_file: the receipt.
        adapter: what was merged.
        model: the base, with its data files beside it.
        out: the new ``.onnx``, under the name that it had: the graph holds the names of its data files.
        base: the checkpoint, if it was needed to find the targets.
        workers: threads; None as in a merge.
        progress: called with the bytes of external data written and of all.

    Raises:
        NotFoundError: there is no receipt or no base.
        ConflictError: an output exists.
        IntegrityError: the adapter or a file of the base is another one, or the output is.
        UnsupportedError: a receipt of another version or kind, without digests, or with unknown options.
        UsageError: ``out`` has another name than the receipt says.
        LoregError: as :func:`~lora_registry.merge.onnx.model.merge_onnx`.
    """
    said = read_receipt(receipt_file)
    if said.kind != "onnx":
        raise UnsupportedError(
            f"{receipt_file}: the receipt of a merge into {said.kind}, and the base is an ONNX model"
        )
    try:
        options = MergeOptions.from_json(said.options)
    except UnsupportedError as error:
        raise UnsupportedError(f"{receipt_file}: {error}; replay it with {said.tool}") from None
    if said.adapter != str(content_digest(adapter)):
        raise IntegrityError(f"the adapter is not the one of {receipt_file}, whose content digest is {said.adapter}")
    names = {record.name for record in said.outputs}
    if out.name not in names:
        graphs = listed(sorted(name for name in names if name.endswith(".onnx")))
        raise UsageError(f"{out}: the receipt is of {graphs}, and the graph names its files after itself")
    require_files(model.parent, said.inputs, str(receipt_file))
    places = [out.parent / name for name in sorted(names - {out.name})] + [receipt_path(out), out]
    refuse_existing(*places)
    with storage_errors(out), staging_folder(out) as staging:
        made = prepare_onnx(adapter, model, staging / out.name, options, base=base)
        receipt = made.write(workers=workers, progress=progress)
        wanted = {record.name: record.digest for record in said.outputs}
        found = {record.name: record.digest for record in receipt.outputs}
        wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        if wrong:
            raise IntegrityError(
                f"{listed(wrong)}: not what the receipt names, which {said.tool} wrote; this is {__version__}; "
                "nothing was kept"
            )
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            claim(staging / place.relative_to(out.parent), place)
        sync_folder(out.parent)
    return receipt
