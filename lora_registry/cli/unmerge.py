"""``loreg unmerge``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._command import command, json_option
from lora_registry.cli._merge_report import undo_size
from lora_registry.cli._output import print_fields, print_json, size
from lora_registry.cli._progress import progress
from lora_registry.errors import UsageError
from lora_registry.text import plural, printable


@command(
    "unmerge",
    examples="""
loreg unmerge ./merged --base ./base --save-undo ./merged.undo
loreg unmerge ./merged --undo ./merged.undo -o ./base-again
loreg unmerge ./merged --base ./base -o ./base-again
""",
)
@click.argument("merged", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="What to restore; must not exist.")
@click.option("--undo", type=click.Path(path_type=Path), help="The reverse patch, as --keep-undo of the merge writes.")
@click.option("--base", type=click.Path(path_type=Path), help="The base, where it is at hand.")
@click.option(
    "--save-undo",
    type=click.Path(path_type=Path),
    help="Write the reverse patch of MERGED and --base; restores nothing.",
)
@json_option
def unmerge(
    merged: Path, output: Path | None, undo: Path | None, base: Path | None, save_undo: Path | None, as_json: bool
) -> None:
    """Give the base of a merged checkpoint back, byte by byte.

    By a reverse patch, which is checked against MERGED before and against the base after; or from the base itself,
    of which the files that the receipt names are copied and checked. Subtracting the change would drift.
    """
    if save_undo is not None:
        if base is None or output is not None or undo is not None:
            raise UsageError("--save-undo needs --base, and neither --output nor --undo")
        _save(merged, base, save_undo, as_json=as_json)
        return
    if output is None or (undo is None) == (base is None):
        raise UsageError("give --output, and either --undo or --base to restore it from")
    from lora_registry.merge.undo.unmerge import copy_base
    from lora_registry.merge.undo.unmerge import unmerge as restore

    with progress(f"restoring {output.name}", quiet=as_json) as advance:
        if undo is not None:
            records = restore(merged, undo, output, progress=advance)
        else:
            assert base is not None  # one of the two is given
            records = copy_base(merged, base, output, progress=advance)
    if as_json:
        print_json({"output": str(output), "files": [record.to_json() for record in records]})
        return
    click.echo(f"restored {click.style(printable(str(output)), bold=True)}")
    total = sum(record.size for record in records)
    print_fields([("files", f"{plural(len(records), 'file')}, {size(total)}, each with the digest that the base had")])


def _save(merged: Path, base: Path, patch: Path, *, as_json: bool) -> None:
    with progress(f"writing {patch.name}", quiet=as_json) as advance:
        from lora_registry.merge.undo.patch import write_undo

        made = write_undo(base, merged, patch, progress=advance)
    if as_json:
        print_json({"undo": str(patch), "size": made.patch, "changed": made.changed, "base": made.base})
        return
    click.echo(f"wrote {click.style(printable(str(patch)), bold=True)}")
    print_fields([("size", undo_size(made))])
