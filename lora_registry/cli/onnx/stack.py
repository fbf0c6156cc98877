"""``loreg onnx stack``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from lora_registry.cli._adapters import ADAPTER, open_sound
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json, print_table
from lora_registry.text import printable


@command(
    "stack",
    examples="""
loreg onnx stack support/tone:1 support/french:2 --model batched.onnx -o both.onnx_adapter
""",
)
@click.argument("adapters", metavar="ADAPTER...", type=ADAPTER, nargs=-1, required=True)
@click.option("--model", type=click.Path(path_type=Path), required=True, help="What `loreg onnx slots --batched` made.")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="The .onnx_adapter file to write."
)
@registry_option
@json_option
def stack(adapters: tuple[str, ...], model: Path, out: Path, registry_home: str | None, as_json: bool) -> None:
    """Put several adapters into one file for a batched MODEL, of which each row of a batch chooses one.

    The numbers that are printed go into the input adapter_ids, one for each row; 0 is the base.
    """
    from lora_registry.onnx.slots.adapter_file import AdapterFile
    from lora_registry.onnx.slots.insert import slots_of
    from lora_registry.onnx.slots.stack import stacked
    from lora_registry.ops.arrays import from_array

    manifest = slots_of(model)
    stacks = stacked(manifest, [open_sound(adapter, registry_home).adapter for adapter in adapters])
    parameters = {name: from_array(array) for name, array in sorted(stacks.items())}
    file = AdapterFile(parameters=parameters, model_version=manifest.model_version)
    replace(file, adapter_version=file.checksum).write(out)
    numbers = dict(enumerate(adapters, start=1))
    if as_json:
        print_json({"path": str(out), "adapters": {str(number): source for number, source in numbers.items()}})
        return
    print_table(("number", "adapter"), numbers.items())
    click.echo(f"wrote {printable(str(out))}")
