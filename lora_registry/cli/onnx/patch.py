"""``loreg onnx patch``, ``loreg onnx apply`` and ``loreg onnx revert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_sound
from lora_registry.cli._algebra import print_notes
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json, size
from lora_registry.cli._progress import progress
from lora_registry.errors import UsageError
from lora_registry.format.files import refuse_existing
from lora_registry.text import listed, plural, printable

if TYPE_CHECKING:
    from lora_registry.lpatch.write import PatchSize
    from lora_registry.merge.receipt import FileRecord

_MODEL = click.Path(path_type=Path)


@command(
    "patch",
    examples="""
loreg onnx patch base.onnx merged.onnx -o tone.lpatch --adapter support/tone:1
loreg onnx patch base.onnx merged.onnx -o tone.lpatch --extract
""",
)
@click.argument("base", type=_MODEL)
@click.argument("merged", type=_MODEL)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The patch, *.lpatch.")
@click.option("--adapter", type=ADAPTER, help="What was merged: the patch holds its factors instead of whole changes.")
@click.option("--extract", is_flag=True, help="Find the factors in the difference, where the adapter is not at hand.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@registry_option
@json_option
def patch_(
    base: Path,
    merged: Path,
    output: Path,
    adapter: str | None,
    extract: bool,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Write what makes MERGED of BASE, byte by byte, and BASE of MERGED again.

    All files of both models count, the external data too, and the patch has the digest of each. With --adapter it
    holds the factors, and what they leave to be said: a few hundredths of the weights that changed. --extract looks
    for factors by itself, for which it decomposes every matrix that changed. With neither it holds differences of
    bits, which are most of the bits where the change is dense.
    """
    if adapter is not None and extract:
        raise UsageError("--adapter says what was merged, and --extract looks for it: give one of them")
    if not overwrite:
        refuse_existing(output)
    from lora_registry.lpatch.write import write_patch

    known = open_sound(adapter, registry_home).adapter if adapter is not None else None
    if extract:
        from lora_registry.lpatch.discover import discover

        with progress("looking for factors", unit="tensors", quiet=as_json) as advance:
            known = discover(base, merged, progress=advance)
    with progress(f"writing {output.name}", quiet=as_json) as advance:
        made = write_patch(base, merged, output, adapter=known, overwrite=overwrite, progress=advance)
    if as_json:
        print_json({"patch": str(output), **made.to_json()})
        return
    click.echo(f"wrote {click.style(printable(str(output)), bold=True)}")
    print_fields(_fields(made))
    if made.unexplained:
        why = "no product of its factors gives what was merged; stored as differences, which are large"
        print_notes([f"{listed(made.unexplained)}: {why}"])


def _fields(made: PatchSize) -> list[tuple[str, str]]:
    share = made.patch / made.changed if made.changed else 0.0
    parts = {
        f"factors of {plural(made.products, 'tensor')}": made.factors,
        "corrections": made.corrections,
        "differences": made.differences,
        "whole": made.literals,
    }
    return [
        ("size", size(made.patch)),
        ("holds", ", ".join(f"{size(count)} {what}" for what, count in parts.items() if count)),
        ("changed", f"{size(made.changed)} of the {size(made.merged)} of the model; the patch is {share:.2%} of that"),
    ]


@command("apply", examples="loreg onnx apply base.onnx tone.lpatch -o merged.onnx")
@click.argument("base", type=_MODEL)
@click.argument("patch", type=_MODEL)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .onnx to make.")
@json_option
def apply(base: Path, patch: Path, output: Path, as_json: bool) -> None:
    """Make the merged model of BASE by PATCH.

    BASE is held against the digests in the patch first, and what comes out, second; another model is refused, and
    nothing is written. External data take the names by which the model calls them, beside OUTPUT.
    """
    from lora_registry.lpatch.rebuild import apply as applied

    with progress(f"writing {output.name}", quiet=as_json) as advance:
        records = applied(base, patch, output, progress=advance)
    _print(output, records, "the merged model", as_json=as_json)


@command("revert", examples="loreg onnx revert merged.onnx tone.lpatch -o base.onnx")
@click.argument("merged", type=_MODEL)
@click.argument("patch", type=_MODEL)
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .onnx to make.")
@json_option
def revert(merged: Path, patch: Path, output: Path, as_json: bool) -> None:
    """Give the base of MERGED back by PATCH, byte by byte.

    MERGED is held against the digests in the patch first, and what comes out, second; another model is refused, and
    nothing is written. External data take the names by which the model calls them, beside OUTPUT.
    """
    from lora_registry.lpatch.rebuild import revert as reverted

    with progress(f"writing {output.name}", quiet=as_json) as advance:
        records = reverted(merged, patch, output, progress=advance)
    _print(output, records, "the base", as_json=as_json)


def _print(output: Path, records: tuple[FileRecord, ...], what: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"output": str(output), "files": [record.to_json() for record in records]})
        return
    click.echo(f"wrote {click.style(printable(str(output)), bold=True)}")
    total = sum(record.size for record in records)
    said = f"{plural(len(records), 'file')}, {size(total)}, each with the digest that {what} had"
    print_fields([("files", said)])
