"""``loreg tag`` and ``loreg rm``."""

from __future__ import annotations

import click

from lora_registry.cli._adapters import ADAPTER
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json
from lora_registry.registry import Registry


@command(
    "tag",
    examples="""
loreg tag support/tone:1 prod
loreg tag support/tone:2 prod --move --expect sha256:…
loreg tag support/tone:2 2026-11 --immutable
""",
)
@click.argument("reference", type=ADAPTER)
@click.argument("new_tag")
@click.option("--move", is_flag=True, help="Let the tag move if it already points elsewhere.")
@click.option("--immutable", is_flag=True, help="Never let this tag move or go again.")
@click.option("--expect", metavar="DIGEST", help="Move only if the tag still points to this digest.")
@registry_option
@json_option
def tag(
    reference: str,
    new_tag: str,
    move: bool,
    immutable: bool,
    expect: str | None,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Give the adapter behind REFERENCE the further tag NEW_TAG.

    NEW_TAG is a tag in the same repository, such as prod, or repository:tag.
    """
    record = Registry.open(registry_home).tag(reference, new_tag, move=move, immutable=immutable, expect=expect)
    if as_json:
        print_json(record.to_json())
    else:
        click.echo(f"{click.style(str(record.reference), bold=True)} -> {record.digest}")


@command("rm", examples="loreg rm support/tone:1")
@click.argument("reference", type=ADAPTER)
@registry_option
@json_option
def rm(reference: str, registry_home: str | None, as_json: bool) -> None:
    """Remove the tag REFERENCE. The bytes stay until `loreg gc`."""
    record = Registry.open(registry_home).remove(reference)
    if as_json:
        print_json(record.to_json())
    else:
        click.echo(f"removed {record.reference}; it was {record.digest}")
