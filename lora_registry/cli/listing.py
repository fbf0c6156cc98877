"""``loreg list``."""

from __future__ import annotations

import click

from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json, print_table, size
from lora_registry.registry import Registry


@command(
    "list",
    examples="""
loreg list
loreg list 'support/*'
loreg list -q | head
""",
)
@click.argument("pattern", required=False)
@click.option("-q", "--quiet", is_flag=True, help="Print references only, one a line.")
@registry_option
@json_option
def list_(pattern: str | None, quiet: bool, registry_home: str | None, as_json: bool) -> None:
    """List the adapters of the registry, those whose repository matches PATTERN.

    PATTERN is a shell pattern such as 'support/*'.
    """
    records = Registry.open(registry_home).list(pattern)
    if as_json:
        print_json([record.to_json() for record in records])
    elif quiet:
        for record in records:
            click.echo(str(record.reference))
    elif not records:
        click.echo("nothing here yet: loreg push ADAPTER REFERENCE", err=True)
    else:
        print_table(
            ("reference", "digest", "targets", "rank", "base", "license", "size", "created"),
            [
                (
                    record.reference,
                    record.digest.short,
                    record.summary.targets,
                    ",".join(map(str, record.summary.ranks)) or "-",
                    record.summary.base or "-",
                    record.summary.license or "-",
                    size(record.size),
                    record.created[:16].replace("T", " "),
                )
                for record in records
            ],
            right=("targets", "rank", "size"),
        )
