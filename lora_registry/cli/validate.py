"""``loreg validate``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._command import command, json_option
from lora_registry.cli._output import print_findings, print_json
from lora_registry.text import plural


@command(
    "validate",
    examples="""
loreg validate tone.loreg.safetensors
loreg validate *.loreg.safetensors --json
""",
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@json_option
@click.pass_context
def validate(ctx: click.Context, files: tuple[Path, ...], as_json: bool) -> None:
    """Check native files against every rule of the format, the digests of their data included.

    Exits with 0 where every file is sound, and otherwise as a reader refuses the first that is not: 8, or 7 where
    nothing is wrong but bytes that do not have their digest. A file that cannot be opened is an error by itself.
    """
    from lora_registry.errors import refusal
    from lora_registry.format.reader import check_file

    checked = {file: check_file(file) for file in files}
    if as_json:
        print_json(
            [
                {"file": str(file), "sound": not found, "findings": [finding.to_json() for finding in found]}
                for file, found in checked.items()
            ]
        )
    for file, found in () if as_json else checked.items():
        click.echo(f"{click.format_filename(file)}: {plural(len(found), 'finding') if found else 'sound'}")
        print_findings(found)
    broken = [refusal(str(file), found) for file, found in checked.items() if found]
    if broken:
        ctx.exit(broken[0].exit_code)
