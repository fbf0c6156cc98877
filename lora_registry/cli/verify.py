"""``loreg verify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json
from lora_registry.cli._progress import status
from lora_registry.errors import IntegrityError
from lora_registry.text import printable

if TYPE_CHECKING:
    from lora_registry.ops.tied import TiedPolicy


@command(
    "verify",
    examples="""
loreg verify merged.onnx --base ./base --adapter support/tone:1
loreg verify merged.onnx --base ./base --adapter support/tone:1 --provider cuda
loreg verify base.onnx --base ./base
""",
)
@click.argument("merged", type=click.Path(path_type=Path))
@click.option(
    "--base", type=click.Path(path_type=Path), required=True, help="The Hugging Face folder of the base model."
)
@click.option("--adapter", type=ADAPTER, help="The adapter that was merged; none for a plain export.")
@click.option(
    "--provider", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True, help="Where MERGED runs."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0, min_open=True),
    help="Largest relative error that holds.  [default: by dtype]",
)
@click.option("--samples", type=click.IntRange(min=1), default=4, show_default=True, help="Inputs to try.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the inputs.")
@click.option(
    "--tied", type=click.Choice(["untie", "both"]), default="untie", show_default=True, help="As in the merge."
)
@registry_option
@json_option
def verify(
    merged: Path,
    base: Path,
    adapter: str | None,
    provider: str,
    tolerance: float | None,
    samples: int,
    seed: int,
    tied: TiedPolicy,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Run the same inputs through base + unmerged adapter and through MERGED, and compare.

    Exit 7 when the outputs differ by more than the tolerance. The provider is asserted: a model that was
    asked to run on CUDA never runs on the CPU instead.
    """
    from lora_registry.runtime.verify import verify as compare

    expected = open_any(adapter, registry_home).adapter if adapter is not None else None
    with status("running both", quiet=as_json):
        report = compare(
            merged, base, expected, provider=provider, samples=samples, seed=seed, tolerance=tolerance, tied=tied
        )
    if as_json:
        print_json(report.to_json())
    else:
        for line in report.lines():
            click.echo(printable(line))
    if not report.holds:
        raise IntegrityError(
            f"{merged} is not the base {'with this adapter' if adapter else 'that it was exported from'}"
        )
