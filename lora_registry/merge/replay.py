"""A merge done again from its receipt: the same bytes, or nothing."""

from __future__ import annotations

from pathlib import Path

from lora_registry import __version__
from lora_registry.adapter import Adapter
from lora_registry.errors import IntegrityError, UnsupportedError
from lora_registry.format.files import claim, staging_folder, storage_errors, sync_folder
from lora_registry.format.identity import content_digest
from lora_registry.merge.bases.quantized import open_view
from lora_registry.merge.bases.requantized import open_stored
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.destination import check_destination
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.receipt import FileRecord, Receipt, receipt_path
from lora_registry.merge.recorded import Recorded, read_receipt, require_files
from lora_registry.progress import Progress
from lora_registry.text import listed

_REPLAYED = ("safetensors", "gguf")
"""Kinds of output."""


def replay(
    receipt_file: Path,
    adapter: Adapter,
    base: Path,
    out: Path,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Merge again as a receipt says, and keep the result only if every file is the one that it names.

    Args:
        receipt_file: the receipt.
        adapter: what was merged.
        base: into what; of a folder, the files that the receipt names count.
        out: the new folder or file; a file may have another name than it had.
        workers: threads; None as in a merge.
        progress: called with the bytes of the weights written and of all.

    Returns:
        The receipt of the merge that was made.

    Raises:
        NotFoundError: there is no receipt or no base.
        IntegrityError: the adapter or a file of the base is another one, or the output is.
        UnsupportedError: a receipt of another version or of an ONNX model, without digests, or with options that
            are not known here.
        LoregError: as :func:`~lora_registry.merge.checkpoint.merge_checkpoint`.
    """
    said = read_receipt(receipt_file)
    options = _options(said, receipt_file)
    if said.adapter != str(content_digest(adapter)):
        raise IntegrityError(f"the adapter is not the one of {receipt_file}, whose content digest is {said.adapter}")
    opened = open_stored(base, adapter) if options.requantize else open_view(base, adapter)
    check_destination(opened, out, overwrite=False)
    require_files(base, said.inputs, str(receipt_file))
    with storage_errors(out), staging_folder(out) as staging:
        made = staging / out.name
        receipt = merge_checkpoint(adapter, base, made, options, workers=workers, progress=progress)
        _compare(receipt.outputs, said, alone=not made.is_dir())
        if made.is_dir():
            made.rename(out)
        else:
            claim(receipt_path(made), receipt_path(out))
            claim(made, out)
        sync_folder(out.parent)
    return receipt


def _options(said: Recorded, path: Path) -> MergeOptions:
    if said.kind not in _REPLAYED:
        raise UnsupportedError(f"{path}: the receipt of a merge into {said.kind}, which cannot be replayed")
    try:
        return MergeOptions.from_json(said.options)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{path}: {error}; replay it with the program that made it, {__version__} is another"
        ) from None


def _compare(outputs: tuple[FileRecord, ...], said: Recorded, *, alone: bool) -> None:
    """Refuse an output that is not, file by file, what the receipt names."""
    wanted = {"" if alone else record.name: record.digest for record in said.outputs}
    found = {"" if alone else record.name: record.digest for record in outputs}
    wrong = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if wrong:
        what = listed([name or "the output" for name in wrong])
        raise IntegrityError(
            f"{what}: not what the receipt names, which {said.tool} wrote, and this is loreg {__version__}; "
            "nothing was kept"
        )
