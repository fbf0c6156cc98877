"""``loreg resize``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._adapters import ADAPTER
from lora_registry.cli._algebra import (
    check_output,
    device_option,
    parent,
    print_retentions,
    result_options,
    truncation_options,
)
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_fields, print_json
from lora_registry.cli._progress import progress
from lora_registry.text import printable


@command(
    "resize",
    examples="""
loreg resize support/tone:1 -o small.loreg.safetensors --rank 4
loreg resize ./my-peft-adapter -o small.loreg.safetensors --energy 0.99
loreg resize support/tone:1 -o small.loreg.safetensors --rank 8 --dtype BF16 --json
""",
)
@click.argument("adapter", type=ADAPTER)
@truncation_options
@click.option("--dense", is_flag=True, help="Multiply out LoHa, LoKr and sparse changes, and resize those too.")
@device_option
@result_options
@registry_option
@json_option
def resize(
    adapter: str,
    rank: int | None,
    energy: float | None,
    dense: bool,
    device: str,
    output: Path,
    dtype: str,
    overwrite: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Write ADAPTER with fewer ranks: the best approximation there is, and its error.

    The error is the discarded singular values, exactly: `error` is ‖ΔW - ΔW'‖ / ‖ΔW‖ (Frobenius) and `energy` is
    1 - error². A target whose rank is small enough already stays as it is, byte for byte.
    """
    from lora_registry.algebra.arithmetic import computed_on
    from lora_registry.algebra.resize import resize as resized
    from lora_registry.algebra.truncation import Truncation
    from lora_registry.format.identity import content_digest
    from lora_registry.format.writer import write_adapter

    check_output(output, overwrite=overwrite)
    asked = Truncation(rank, energy)
    source = parent(adapter, registry_home)
    with progress("resizing", unit="targets", quiet=as_json) as advance, computed_on(device):
        made, retentions = resized(source, asked, dtype=dtype, dense=dense, progress=advance)
    write_adapter(made, output, overwrite=overwrite)
    content = content_digest(made)
    if as_json:
        targets = [retention.to_json() for retention in retentions]
        print_json({"path": str(output), "content": str(content), "targets": targets})
        return
    print_retentions(retentions, source.adapter)
    click.echo(f"wrote {printable(str(output))}")
    print_fields([("content", content), ("parameters", f"{source.adapter.parameters:,} -> {made.parameters:,}")])
