"""``loreg onnx``: what one does with a graph besides merging into it; one module a subcommand."""

from __future__ import annotations

import click

from lora_registry.cli.onnx.map import map_
from lora_registry.cli.onnx.patch import apply, patch_, revert
from lora_registry.cli.onnx.slots import slots
from lora_registry.cli.onnx.stack import stack


@click.group("onnx")
def onnx() -> None:
    """See into ONNX models, and make them ready for adapters."""


for _command in (map_, slots, stack, patch_, apply, revert):
    onnx.add_command(_command)
