"""``loreg pull``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._adapters import ADAPTER
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json, size
from lora_registry.cli._report import print_report
from lora_registry.registry import Registry
from lora_registry.text import printable


@command(
    "pull",
    examples="""
loreg pull support/tone:prod -o ./out
loreg pull support/tone:prod -o ./peft-folder --as peft
""",
)
@click.argument("reference", type=ADAPTER)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder for the native file, or what to write.",
)
@click.option("--as", "format_name", metavar="FORMAT", default="native", show_default=True, help="Convert on the way.")
@click.option("--strict", is_flag=True, help="Refuse if the conversion drops anything.")
@registry_option
@json_option
def pull(
    reference: str, output: Path, format_name: str, strict: bool, registry_home: str | None, as_json: bool
) -> None:
    """Copy an adapter out of the registry, verified on the way.

    The native file goes into the folder OUTPUT, or to OUTPUT itself where that ends in .safetensors. With
    --as, OUTPUT is what the format's tool reads: for peft a folder that does not exist yet.
    """
    registry = Registry.open(registry_home)
    record = registry.resolve(reference)
    report = None
    if format_name == "native":
        written = registry.pull(reference, output)
    else:
        from lora_registry.convert.discover import converter
        from lora_registry.convert.write import write_as

        report = write_as(converter(format_name), registry.load(reference, verify=True), output, strict=strict)
        written = output
    if as_json:
        print_json({**record.to_json(), "path": str(written), "conversion": report.to_json() if report else None})
        return
    click.echo(f"pulled {click.style(str(record.reference), bold=True)} to {printable(str(written))}")
    print_fields([("digest", record.digest), ("content", record.content), ("size", size(record.size))])
    print_report(report)
