"""``loreg log``."""

from __future__ import annotations

import click

from lora_registry.cli._adapters import ADAPTER
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json, print_table
from lora_registry.registry import Registry


@command(
    "log",
    examples="""
loreg log
loreg log support/tone:prod -n 5
""",
)
@click.argument("reference", type=ADAPTER, required=False)
@click.option("-n", "--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Newest events to show.")
@registry_option
@json_option
def log(reference: str | None, limit: int, registry_home: str | None, as_json: bool) -> None:
    """Show who changed what, the newest first. Every event is chained to the one before by its hash."""
    events = Registry.open(registry_home).log(reference, limit=limit)
    if as_json:
        print_json([event.to_json() for event in events])
        return
    print_table(
        ("event", "time", "actor", "action", "reference", "before", "after"),
        [
            (
                event.sequence,
                event.time[:19].replace("T", " "),
                event.actor,
                event.action,
                f"{event.repository}:{event.tag}" if event.tag else event.repository,
                event.before.short if event.before else "-",
                event.after.short if event.after else "-",
            )
            for event in events
        ],
        right=("event",),
    )
