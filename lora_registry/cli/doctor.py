"""``loreg doctor``."""

from __future__ import annotations

import click

from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_json
from lora_registry.errors import EXIT_FINDINGS

_COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


@command("doctor", examples="loreg doctor")
@registry_option
@json_option
@click.pass_context
def doctor(ctx: click.Context, registry_home: str | None, as_json: bool) -> None:
    """Say what is installed, which providers really run a model, and how to mend what does not."""
    from lora_registry.runtime.doctor import examine

    checks = examine(registry_home)
    if as_json:
        print_json([check.to_json() for check in checks])
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            status = click.style(check.status.ljust(7), fg=_COLORS[check.status])
            click.echo(f"{status}  {check.name.ljust(width)}  {check.detail}")
            if check.remedy:
                click.echo(f"{'':7}  {'':{width}}  -> {check.remedy}")
    if any(check.status == "problem" for check in checks):
        ctx.exit(EXIT_FINDINGS)
