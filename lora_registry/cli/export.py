"""``loreg export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json
from lora_registry.cli._progress import status
from lora_registry.errors import UsageError
from lora_registry.text import printable

if TYPE_CHECKING:
    from lora_registry.ops.tied import TiedPolicy


@command(
    "export",
    examples="""
loreg export ./base -o base.onnx
loreg export ./base -o ./base-onnx
loreg export ./base --adapter support/tone:1 -o merged.onnx
loreg export ./base -o half.onnx --dtype F16 --overwrite
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="The .onnx file to write; or a folder, which gets configuration and tokenizer too.",
)
@click.option("--adapter", type=ADAPTER, help="Merge this adapter into what is exported.")
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists.")
@click.option(
    "--dtype",
    type=click.Choice(["F32", "F16", "BF16", "float32", "float16", "bfloat16"]),
    default="F32",
    show_default=True,
    help="Type of the weights and of the arithmetic. BF16 runs on CUDA alone.",
)
@click.option(
    "--tied",
    type=click.Choice(["untie", "both", "error"]),
    help="What a target on one of two tied tensors changes, as in loreg merge.  [default: untie]",
)
@registry_option
@json_option
def export(
    model: Path,
    output: Path,
    adapter: str | None,
    overwrite: bool,
    dtype: str,
    tied: TiedPolicy | None,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Export a Hugging Face model folder to ONNX, with names that adapters can be merged by.

    Decoders get KV cache inputs and outputs; in an output folder they get what onnxruntime-genai needs to run them.
    Encoder-decoders are two files, so that OUTPUT has to be a folder. Each file says which initializer is which
    tensor of the checkpoint, and holds no path of this machine.
    """
    from lora_registry.runtime.export import export_model

    if tied is not None and adapter is None:
        raise UsageError("--tied says how an adapter is merged; give one with --adapter")
    merged = open_any(adapter, registry_home).adapter if adapter is not None else None
    with status(f"exporting {model}", quiet=as_json) as say:
        report = export_model(
            model, output, dtype=dtype, adapter=merged, tied=tied or "untie", overwrite=overwrite, progress=say
        )
    if as_json:
        print_json(report.to_json())
    else:
        click.echo(f"exported {click.style(printable(str(output)), bold=True)}")
        print_fields(report.lines())
