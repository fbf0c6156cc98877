"""``loreg convert``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._adapters import ADAPTER, open_sound
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json
from lora_registry.cli._report import print_report, refuse_losses
from lora_registry.errors import UsageError
from lora_registry.text import printable


@command(
    "convert",
    examples="""
loreg convert ./my-peft-adapter tone.loreg.safetensors
loreg convert tone.loreg.safetensors ./peft-folder --to peft
loreg convert support/tone:1 ./peft-folder --to peft --strict
""",
)
@click.argument("source", metavar="ADAPTER", type=ADAPTER)
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--from", "source_format", metavar="FORMAT", help="Read ADAPTER as this format instead of detecting it.")
@click.option(
    "--to", "format_name", metavar="FORMAT", help="Format to write; native where DESTINATION ends in .safetensors."
)
@click.option("--strict", is_flag=True, help="Refuse if anything is dropped.")
@click.option("--overwrite", is_flag=True, help="Replace a native file that exists.")
@registry_option
@json_option
def convert(
    source: str,
    destination: Path,
    source_format: str | None,
    format_name: str | None,
    strict: bool,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Read ADAPTER in any format and write it to DESTINATION in another.

    What cannot be carried without changing the meaning is refused; whatever else is not a plain copy is
    listed. `loreg formats` names the formats.
    """
    from lora_registry.convert.discover import converter
    from lora_registry.convert.write import write_as
    from lora_registry.format.identity import content_digest
    from lora_registry.format.writer import write_adapter

    opened = open_sound(source, registry_home, source_format)
    refuse_losses(opened.report, strict=strict)
    target = format_name or ("native" if destination.suffix == ".safetensors" else None)
    if target is None:
        raise UsageError("say which format to write with --to, or let DESTINATION end in .safetensors")
    written = None
    if target == "native":
        write_adapter(opened.adapter, destination, overwrite=overwrite)
    else:
        written = write_as(converter(target), opened.adapter, destination, strict=strict)
    content = content_digest(opened.adapter)
    if as_json:
        print_json(
            {
                "path": str(destination),
                "format": target,
                "content": str(content),
                "read": opened.report.to_json() if opened.report else None,
                "written": written.to_json() if written else None,
            }
        )
        return
    click.echo(f"wrote {printable(str(destination))} ({target})")
    print_fields([("content", content)])
    print_report(opened.report)
    print_report(written)
