"""``loreg merge``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json, size
from lora_registry.cli._progress import progress
from lora_registry.errors import UsageError
from lora_registry.text import plural, printable

if TYPE_CHECKING:
    from lora_registry.merge.receipt import Receipt
    from lora_registry.ops.tied import TiedPolicy


@command(
    "merge",
    examples="""
loreg merge support/tone:1 --base ./base -o ./merged
loreg merge support/tone:1 --base base.onnx -o merged.onnx
loreg merge ./my-peft-adapter --base ./base -o ./merged --dtype F32
""",
)
@click.argument("adapter", type=ADAPTER)
@click.option(
    "--base",
    type=click.Path(path_type=Path),
    required=True,
    help="Hugging Face folder, .safetensors file or .onnx file.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="What to write; must not exist.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Checkpoint of an ONNX base, to find weights by value."
)
@click.option(
    "--dtype", metavar="DTYPE", help="Write the merged tensors as this dtype, such as F32.  [default: as the base]"
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
@click.option("--require-exact", is_flag=True, help="Refuse unless every fingerprint of the base agrees.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@registry_option
@json_option
def merge(
    adapter: str,
    base: Path,
    output: Path,
    checkpoint: Path | None,
    dtype: str | None,
    tied: TiedPolicy,
    allow_new: bool,
    require_exact: bool,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Write base + ADAPTER: a Hugging Face folder from a folder, an ONNX file from an ONNX file.

    Every target is merged or nothing is written. A receipt beside the output names the inputs and outputs
    by digest and says how much of each change survived the output dtype.
    """
    opened = open_any(adapter, registry_home)
    into_onnx = base.suffix == ".onnx"
    unit = "tensors" if into_onnx else "bytes"
    with progress(f"merging into {output.name}", unit=unit, quiet=as_json) as advance:
        if into_onnx:
            _refuse(dtype=dtype, allow_new=allow_new)
            if output.suffix != ".onnx":
                raise UsageError(f"{output}: the base is an ONNX model, so the output must be called *.onnx")
            from lora_registry.merge.onnx_model import merge_onnx

            receipt = merge_onnx(
                opened.adapter,
                base,
                output,
                base=checkpoint,
                tied=tied,
                require_exact=require_exact,
                overwrite=overwrite,
                progress=advance,
            )
        else:
            _refuse(checkpoint=checkpoint)
            from lora_registry.merge.checkpoint import merge_checkpoint

            receipt = merge_checkpoint(
                opened.adapter,
                base,
                output,
                dtype=dtype,
                tied=tied,
                allow_new=allow_new,
                require_exact=require_exact,
                overwrite=overwrite,
                progress=advance,
            )
    if as_json:
        print_json(receipt.to_json())
    else:
        _print(receipt, output)


def _refuse(**options: object) -> None:
    """Refuse options that mean nothing for this kind of base, instead of ignoring them."""
    for name, value in options.items():
        if value:
            raise UsageError(f"--{name.replace('_', '-')} is not for this kind of base")


def _print(receipt: Receipt, output: Path) -> None:
    from lora_registry.merge.receipt import receipt_path

    click.echo(f"merged into {click.style(printable(str(output)), bold=True)}")
    losses = [record.fidelity.relative_error for record in receipt.tensors if record.fidelity is not None]
    print_fields(
        [
            ("adapter", receipt.adapter),
            ("base", _VERDICTS[receipt.verdict]),
            ("merged", f"{plural(len(receipt.tensors), 'tensor')} from {_targets(receipt)}"),
            ("lost to rounding", f"{max(losses):.2%} of the worst change, {sum(losses) / len(losses):.2%} on average")
            if losses
            else ("lost to rounding", None),
            ("written", ", ".join(f"{record.name} ({size(record.size)})" for record in receipt.outputs[:4])),
            ("receipt", receipt_path(output)),
        ]
    )
    for note in receipt.notes:
        click.echo(f"{click.style('note', fg='cyan')}     {printable(note)}", err=True)
    for warning in receipt.warnings:
        click.echo(f"{click.style('warning', fg='yellow')}  {printable(warning)}", err=True)


def _targets(receipt: Receipt) -> str:
    return plural(len({record.target for record in receipt.tensors}), "target")


_VERDICTS = {
    "exact": "the one that the adapter was made for, by its fingerprints",
    "same-shapes": "fits in names and shapes; its weights are other ones, or not known to be the same",
}
