"""``loreg gc``, ``loreg fsck`` and ``loreg reindex``."""

from __future__ import annotations

import click

from lora_registry.cli._command import command, json_option, registry_option
from lora_registry.cli._output import print_findings, print_json, size
from lora_registry.cli._progress import status
from lora_registry.errors import EXIT_FINDINGS
from lora_registry.findings import Severity
from lora_registry.registry import Registry
from lora_registry.text import plural


@command(
    "gc",
    examples="""
loreg gc --dry-run
loreg gc --grace-hours 0
""",
)
@click.option(
    "--grace-hours",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    help="Keep what is younger than this.",
)
@click.option("--dry-run", is_flag=True, help="Say what would go, and keep it.")
@registry_option
@json_option
def gc(grace_hours: float, dry_run: bool, registry_home: str | None, as_json: bool) -> None:
    """Delete what no tag reaches."""
    swept = Registry.open(registry_home).gc(grace=grace_hours * 3600, dry_run=dry_run)
    if as_json:
        print_json(swept.to_json())
    else:
        verb = "would delete" if dry_run else "deleted"
        manifests, blobs = plural(len(swept.manifests), "manifest"), plural(len(swept.blobs), "blob")
        click.echo(f"{verb} {manifests} and {blobs}, {size(swept.bytes)}")


@command("fsck", examples="loreg fsck --json")
@registry_option
@json_option
@click.pass_context
def fsck(ctx: click.Context, registry_home: str | None, as_json: bool) -> None:
    """Rehash every blob and check the catalogue and the event log against them; exit 1 on findings."""
    with status("reading every blob", quiet=as_json):
        findings = Registry.open(registry_home).fsck()
    if as_json:
        print_json([finding.to_json() for finding in findings])
    else:
        print_findings(findings)
    serious = [finding for finding in findings if finding.severity is not Severity.NOTE]
    if not as_json:
        click.echo("sound" if not serious else plural(len(serious), "problem"))
    if serious:
        ctx.exit(EXIT_FINDINGS)


@command("reindex", examples="loreg reindex")
@registry_option
@json_option
@click.pass_context
def reindex(ctx: click.Context, registry_home: str | None, as_json: bool) -> None:
    """Rebuild the catalogue from the manifests and the journal that lie beside it; exit 1 if something is lost."""
    with status("rebuilding the catalogue", quiet=as_json):
        rebuilt = Registry.open(registry_home).reindex()
    if as_json:
        print_json(rebuilt.to_json())
    else:
        manifests, tags = plural(rebuilt.manifests, "manifest"), plural(rebuilt.tags, "tag")
        click.echo(f"rebuilt {manifests}, {tags}, {plural(rebuilt.events, 'event')}")
        for repository, digest in rebuilt.lost:
            click.echo(f"{click.style('lost', fg='red')} {repository}@{digest}")
    if rebuilt.lost:
        ctx.exit(EXIT_FINDINGS)
