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

_BY_SUFFIX = {".safetensors": "native", ".onnx_adapter": "onnx-adapter"}


@command(
    "convert",
    examples="""
loreg convert ./my-peft-adapter tone.loreg.safetensors
loreg convert tone.loreg.safetensors ./peft-folder --to peft
loreg convert support/tone:1 ./peft-folder --to peft --strict
loreg convert support/tone:1 tone.onnx_adapter --model switchable.onnx
""",
)
@click.argument("source", metavar="ADAPTER", type=ADAPTER)
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--from", "source_format", metavar="FORMAT", help="Read ADAPTER as this format instead of detecting it.")
@click.option("--to", "format_name", metavar="FORMAT", help="Format to write; by default DESTINATION's suffix says it.")
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="The switchable model whose adapter is read or written (.onnx_adapter).",
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
    model: Path | None,
    strict: bool,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Read ADAPTER in any format and write it to DESTINATION in another.

    What cannot be carried without changing the meaning is refused; whatever else is not a plain copy is
    listed. `loreg formats` names the formats.
    """
    from lora_registry.convert.discover import converter, for_model
    from lora_registry.convert.protocol import ForModel
    from lora_registry.convert.write import write_as
    from lora_registry.format.identity import content_digest
    from lora_registry.format.writer import write_adapter

    target = format_name or _BY_SUFFIX.get(destination.suffix)
    if target is None:
        raise UsageError(f"say which format to write with --to, or let DESTINATION end in {' or '.join(_BY_SUFFIX)}")
    writer = None if target == "native" else converter(target)
    writes_for_model = isinstance(writer, ForModel)
    opened = open_sound(source, registry_home, source_format, None if writes_for_model else model)
    refuse_losses(opened.report, strict=strict)
    written = None
    if writer is None:
        write_adapter(opened.adapter, destination, overwrite=overwrite)
    else:
        writer = for_model(writer, model) if writes_for_model else writer
        written = write_as(writer, opened.adapter, destination, strict=strict)
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
