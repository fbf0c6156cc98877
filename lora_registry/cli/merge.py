"""``loreg merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._merge_report import print_onnx_preview, print_preview, print_receipt
from lora_registry.cli._output import print_json
from lora_registry.cli._progress import progress
from lora_registry.errors import NotAllowedError, NotFoundError, UsageError

if TYPE_CHECKING:
    from lora_registry.adapter import Adapter
    from lora_registry.merge.options import Device, MergeOptions
    from lora_registry.merge.receipt import Receipt
    from lora_registry.ops.tied import TiedPolicy


@command(
    "merge",
    examples="""
loreg merge support/tone:1 --base ./base -o ./merged
loreg merge support/tone:1 --base base.onnx -o merged.onnx
loreg merge ./my-peft-adapter --base ./base -o ./merged --dtype touched=F32
loreg merge support/tone:1 --base ./base -o ./merged --dry-run
loreg merge support/tone:1 --base ./base -o ./merged --keep-undo ./merged.undo
loreg merge support/tone:1 --base ./base -o ./again --replay ./merged/loreg-receipt.json
""",
)
@click.argument("adapter", type=ADAPTER)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face folder (quantized ones too), .safetensors, .bin, .gguf or .onnx file.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="What to write; must not exist.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Checkpoint of an ONNX base, to find weights by value."
)
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    metavar="[PATTERN=]DTYPE",
    help="Write the weights as this dtype, such as F32; only those that match PATTERN, or that the adapter changes "
    "(touched=F32). May be given several times; the last that matches decides.  [default: as the base]",
)
@click.option(
    "--min-retention",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Refuse unless this share of every change survives the output's dtype, such as 0.9.  [default: 0.5 of ONNX "
    "weights that --requantize changes, else none]",
)
@click.option(
    "--tied",
    type=click.Choice(["untie", "both", "error"]),
    default="untie",
    show_default=True,
    help="When one of two tied tensors is a target: change only that one (what the unmerged adapter does), "
    "both (what PEFT's merge does), or refuse.",
)
@click.option("--allow-new", is_flag=True, help="Let full tensors be added that the base does not have.")
@click.option("--allow-growth", is_flag=True, help="Let saved embeddings and heads with more rows grow the vocabulary.")
@click.option("--require-exact", is_flag=True, help="Refuse unless every fingerprint of the base agrees.")
@click.option("--workers", type=click.IntRange(min=1), help="Threads.  [default: one a processor, at most 4]")
@click.option("--no-hash", is_flag=True, help="Take no digests of the weights: faster, but the receipt proves nothing.")
@click.option(
    "--no-sync",
    is_flag=True,
    help="Do not wait for the disk: as safe as cp, so that a power cut may leave a broken output, and no --resume.",
)
@click.option(
    "--requantize",
    is_flag=True,
    help="Of a quantized base, quantize the changed weights again as they were, and leave the rest alone; four bits "
    "keep little of a small change (see --min-retention).  [default: write everything as BF16; of an ONNX model, keep "
    "the change beside the quantized weight, where nothing of it is lost]",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where the sums are computed; cuda sends the weights through an NVIDIA GPU and back, and needs torch.",
)
@click.option("--resume", is_flag=True, help="Go on with the same merge into OUTPUT that was killed.")
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@click.option(
    "--keep-undo", type=click.Path(path_type=Path), help="Write a reverse patch too, for loreg unmerge; must not exist."
)
@click.option(
    "--replay",
    "receipt_file",
    type=click.Path(path_type=Path),
    metavar="RECEIPT",
    help="Merge with the options of a receipt, and keep the output only if it has the digests of the receipt.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@registry_option
@json_option
def merge(
    adapter: str,
    base: Path,
    output: Path,
    checkpoint: Path | None,
    dtypes: tuple[str, ...],
    min_retention: float | None,
    tied: TiedPolicy,
    allow_new: bool,
    allow_growth: bool,
    require_exact: bool,
    workers: int | None,
    no_hash: bool,
    no_sync: bool,
    requantize: bool,
    device: Device,
    resume: bool,
    dry_run: bool,
    keep_undo: Path | None,
    receipt_file: Path | None,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Write base + ADAPTER: a Hugging Face folder from a folder, an ONNX file from an ONNX file.

    Every target is merged or nothing is written. A receipt beside the output names the inputs and outputs
    by digest and says how much of each change survived the output dtype.
    """
    from lora_registry.merge.options import MergeOptions

    opened = open_any(adapter, registry_home)
    into_onnx = base.suffix == ".onnx"
    if keep_undo is not None:
        _check_undo(keep_undo, base, dry_run=dry_run, no_hash=no_hash)
    if receipt_file is not None:
        _replay(receipt_file, opened.adapter, base, output, checkpoint, workers, keep_undo, as_json=as_json)
        return
    options = MergeOptions(
        dtype=dtypes,
        tied=tied,
        allow_new=allow_new,
        allow_growth=allow_growth,
        require_exact=require_exact,
        hashed=not no_hash,
        requantize=requantize,
        device=device,
    )
    if into_onnx:
        _refuse(
            dtype=dtypes,
            allow_new=allow_new,
            allow_growth=allow_growth,
            resume=resume,
            device=device != "cpu",
        )
        if output.suffix != ".onnx":
            raise UsageError(f"{output}: the base is an ONNX model, so the output must be called *.onnx")
    else:
        _refuse(checkpoint=checkpoint)
    if dry_run:
        _preview(opened.adapter, base, output, options, checkpoint, overwrite=overwrite, as_json=as_json)
        return
    with progress(f"merging into {output.name}", unit="bytes", quiet=as_json) as advance:
        if into_onnx:
            from lora_registry.merge.onnx.model import prepare_onnx

            receipt = prepare_onnx(opened.adapter, base, output, options, base=checkpoint).write(
                min_retention=min_retention,
                workers=workers,
                durable=not no_sync,
                overwrite=overwrite,
                progress=advance,
            )
        else:
            from lora_registry.merge.checkpoint import merge_checkpoint

            receipt = merge_checkpoint(
                opened.adapter,
                base,
                output,
                options,
                min_retention=min_retention,
                workers=workers,
                durable=not no_sync,
                resume=resume,
                overwrite=overwrite,
                progress=advance,
            )
    _tell(receipt, base, output, keep_undo, as_json=as_json)


def _preview(
    adapter: Adapter,
    base: Path,
    output: Path,
    options: MergeOptions,
    checkpoint: Path | None,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Say what a merge would do."""
    if base.suffix == ".onnx":
        from lora_registry.merge.onnx.model import prepare_onnx

        into = prepare_onnx(adapter, base, output, options, base=checkpoint).to_json()
        print_json(into) if as_json else print_onnx_preview(into, output)
        return
    from lora_registry.merge.checkpoint import prepare
    from lora_registry.merge.preview import preview

    told = preview(prepare(adapter, base, output, options, overwrite=overwrite))
    print_json(told.to_json()) if as_json else print_preview(told, output)


def _tell(receipt: Receipt, base: Path, output: Path, keep_undo: Path | None, *, as_json: bool) -> None:
    """Write the reverse patch where it is asked for, and print the receipt."""
    undo = None
    if keep_undo is not None:
        from lora_registry.merge.undo.patch import write_undo

        with progress(f"writing {keep_undo.name}", quiet=as_json) as advance:
            undo = write_undo(base, output, keep_undo, progress=advance)
    print_json(receipt.to_json()) if as_json else print_receipt(receipt, output, undo)


def _check_undo(patch: Path, base: Path, *, dry_run: bool, no_hash: bool) -> None:
    """Refuse, before anything is merged, a patch that could not be written afterwards."""
    if base.suffix == ".onnx" or dry_run:
        raise UsageError(f"--keep-undo is not for {'an ONNX model' if base.suffix == '.onnx' else 'a dry run'}")
    if no_hash:
        raise UsageError("--keep-undo is not for --no-hash: a merge is undone by the digests of its receipt")
    from lora_registry.format.files import refuse_existing

    refuse_existing(patch)
    if not patch.parent.is_dir():
        raise NotFoundError(f"no such folder: {patch.parent}")
    if base.is_dir() and base.resolve() in patch.resolve().parents:
        raise NotAllowedError(f"{patch} lies in the base, which is never changed; choose another place")


_OF_RECEIPT = (
    "dtypes",
    "min_retention",
    "tied",
    "allow_new",
    "allow_growth",
    "require_exact",
    "no_hash",
    "requantize",
    "device",
)
_NOT_REPLAYED = ("resume", "dry_run", "overwrite")


def _replay(
    receipt_file: Path,
    adapter: Adapter,
    base: Path,
    output: Path,
    checkpoint: Path | None,
    workers: int | None,
    keep_undo: Path | None,
    *,
    as_json: bool,
) -> None:
    """Merge as a receipt says; options that it holds cannot be given beside it."""
    context = click.get_current_context()
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name in _OF_RECEIPT + _NOT_REPLAYED:
            why = "the receipt says it" if parameter.name in _OF_RECEIPT else "it means nothing there"
            raise UsageError(f"{parameter.opts[0]} cannot be given with --replay: {why}")
    with progress(f"merging into {output.name}", quiet=as_json) as advance:
        if base.suffix == ".onnx":
            from lora_registry.merge.onnx.replay import replay_onnx

            receipt = replay_onnx(
                receipt_file, adapter, base, output, base=checkpoint, workers=workers, progress=advance
            )
        else:
            from lora_registry.merge.replay import replay

            _refuse(checkpoint=checkpoint)
            receipt = replay(receipt_file, adapter, base, output, workers=workers, progress=advance)
    _tell(receipt, base, output, keep_undo, as_json=as_json)


def _refuse(**options: object) -> None:
    """Refuse options that mean nothing for this kind of base, instead of ignoring them."""
    for name, value in options.items():
        if value not in (None, False, ()):
            raise UsageError(f"--{name.replace('_', '-')} is not for this kind of base")
