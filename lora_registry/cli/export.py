"""``loreg export``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._command import command, json_option
from lora_registry.cli._output import print_fields, print_json
from lora_registry.cli._progress import status
from lora_registry.text import printable


@command(
    "export",
    examples="""
loreg export ./base -o base.onnx
loreg export ./base -o base.onnx --overwrite
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .onnx file to write.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the weights and of the arithmetic.",
)
@json_option
def export(model: Path, output: Path, overwrite: bool, dtype: str, as_json: bool) -> None:
    """Export a Hugging Face model folder to ONNX, with names that adapters can be merged by.

    Decoders get KV cache inputs and outputs. The file says which initializer is which tensor of the
    checkpoint, and holds no path of this machine.
    """
    from lora_registry.runtime.export import export_model

    with status(f"exporting {model}", quiet=as_json) as say:
        report = export_model(model, output, dtype=dtype, overwrite=overwrite, progress=say)
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(f"exported {click.style(printable(str(output)), bold=True)}")
        print_fields(report.lines())
