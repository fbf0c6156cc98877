"""``loreg audit``."""

from __future__ import annotations

from pathlib import Path

import click

from lora_registry.cli._adapters import ADAPTER, open_any
from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_findings, print_json
from lora_registry.cli._progress import progress
from lora_registry.errors import EXIT_FINDINGS
from lora_registry.findings import Severity
from lora_registry.text import plural, printable


@command(
    "audit",
    examples="""
loreg audit support/tone:1
loreg audit ./my-peft-adapter --base ./base
loreg audit support/tone:1 --json --fail-on error
loreg audit --rules
""",
)
@click.argument("adapter", type=ADAPTER, required=False)
@click.option("--from", "format_name", metavar="FORMAT", help="Read ADAPTER as this format instead of detecting it.")
@click.option("--base", type=click.Path(path_type=Path), help="Base model to hold the adapter against.")
@click.option(
    "--fail-on",
    type=click.Choice([severity.value for severity in Severity]),
    default=Severity.WARNING.value,
    show_default=True,
    help="Exit 1 from this severity on.",
)
@click.option("--rules", "list_rules", is_flag=True, help="List the rules, and why each matters.")
@registry_option
@json_option
@click.pass_context
def audit(
    ctx: click.Context,
    adapter: str | None,
    format_name: str | None,
    base: Path | None,
    fail_on: str,
    list_rules: bool,
    registry_home: str | None,
    as_json: bool,
) -> None:
    """Say what somebody should know before using ADAPTER; exit 1 on findings.

    Every tensor is read. What could not be checked is listed as such: it is never counted as fine.
    """
    if list_rules:
        _print_rules(as_json)
        return
    if adapter is None:
        raise click.UsageError("name an ADAPTER, or ask for --rules")
    from lora_registry.audit.engine import audit as examine

    opened = open_any(adapter, registry_home, format_name)
    # Opening a native file has checked its framing; the audit itself checks the rest, the data's digests included.
    framing = () if opened.report is None else None
    fit = None
    if base is not None:
        from lora_registry.merge.fitting.against import hold_against

        fit, _ = hold_against(opened.adapter, base)
    with progress("auditing", unit="targets", quiet=as_json) as advance:
        report = examine(opened.adapter, file_findings=framing, report=opened.report, fit=fit, progress=advance)
    if as_json:
        print_json({"source": adapter, **report.to_json()})
    else:
        print_findings(report.findings)
        for line in report.skipped:
            click.echo(f"{click.style('skipped', fg='magenta')}  {printable(str(line))}")
        click.echo(report.summary)
    order = list(Severity)
    limit = order.index(Severity(fail_on))
    if any(order.index(finding.severity) <= limit for finding in report.findings):
        ctx.exit(EXIT_FINDINGS)


def _print_rules(as_json: bool) -> None:
    from lora_registry.audit.rules import RULES

    if as_json:
        print_json([rule.to_json() for rule in RULES.values()])
        return
    for rule in RULES.values():
        click.echo(f"{click.style(rule.id, bold=True)}  {rule.severity.value:7}  {rule.title}")
        click.echo(f"       {rule.why}")
        click.echo(f"       -> {rule.mend}")
    click.echo(plural(len(RULES), "rule"))
