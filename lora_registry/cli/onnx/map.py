"""``loreg onnx map``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_findings, print_json, print_table
from lora_registry.errors import EXIT_FINDINGS
from lora_registry.text import plural

if TYPE_CHECKING:
    from lora_registry.onnx.resolution import Resolution


@command(
    "map",
    examples="""
loreg onnx map base.onnx --adapter support/tone:1
loreg onnx map base.onnx --adapter support/tone:1 --base ./base
""",
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--adapter", type=ADAPTER, required=True, help="The adapter whose targets are looked for.")
@click.option(
    "--base", type=click.Path(path_type=Path), help="Checkpoint of the model, to find and confirm weights by value."
)
@registry_option
@json_option
@click.pass_context
def map_(
    ctx: click.Context, model: Path, adapter: str, base: Path | None, registry_home: str | None, as_json: bool
) -> None:
    """Say which initializer of MODEL holds which tensor, by which rules, and who reads it.

    rules: what speaks for it, all of which agree. held: as the checkpoint stores it, or transposed. readers: the
    operators that a merge changes; shared is an initializer that others read too, which a merge leaves as it is.

    Exit 1 when a tensor is not found, or cannot be changed; the finding says why.
    """
    from lora_registry.merge.base import open_base
    from lora_registry.onnx.model import OnnxModel
    from lora_registry.onnx.resolve import attempt

    targets = open_any(adapter, registry_home).adapter.targets
    checkpoint = open_base(base) if base is not None else None
    resolutions, findings = attempt(OnnxModel.open(model), targets, base=checkpoint)
    if as_json:
        print_json(
            {
                "targets": {resolution.target.name: resolution.evidence() for resolution in resolutions},
                "findings": [finding.to_json() for finding in findings],
            }
        )
    else:
        print_table(
            ("target", "rules", "initializer", "held", "readers"),
            (row for resolution in resolutions for row in _rows(resolution)),
        )
        print_findings(findings)
        click.echo(f"{len(resolutions)} of {plural(len(targets), 'target')} found")
    if findings:
        ctx.exit(EXIT_FINDINGS)


def _rows(resolution: Resolution) -> list[tuple[str, ...]]:
    """One line for each initializer that holds the target."""
    name, rules = resolution.target.name, " ".join(resolution.rules)
    rows: list[tuple[str, ...]] = [
        (name, rules, "none: it was zero", "to be added", str(gemm.name)) for gemm in resolution.open_gemms
    ]
    for carrier in resolution.carriers:
        readers = ", ".join(site.node or site.operator for site in carrier.sites)
        held = "transposed" if carrier.transposed else "as stored"
        rows.append((name, rules, str(carrier.value.name), f"{held}, shared" if carrier.shared else held, readers))
    return rows
