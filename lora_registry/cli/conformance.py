"""``loreg conformance``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_registry.cli._command import command, json_option
from lora_registry.cli._output import print_json
from lora_registry.cli._progress import progress
from lora_registry.conformance.protocol import OPERATIONS
from lora_registry.errors import EXIT_FINDINGS
from lora_registry.text import plural, printable

if TYPE_CHECKING:
    from lora_registry.conformance.claim import Failure, Report

_SHOWN = 20  # failures that are printed; --json has them all


@command(
    "conformance",
    examples="""
loreg conformance
loreg conformance --entrypoint "node reader.js"
loreg conformance --entrypoint ./reader --class reader --class validator
loreg conformance --entrypoint ./reader --vectors ./spec/vectors --json
""",
)
@click.option(
    "--entrypoint",
    metavar="CMD",
    help="The program to ask, with its arguments, without a shell.  [default: loreg itself]",
)
@click.option(
    "--vectors",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="The vectors to ask about.  [default: those that came with loreg]",
)
@click.option(
    "--class",
    "classes",
    type=click.Choice(list(OPERATIONS)),
    multiple=True,
    help="Ask about this class only, which the program has to claim; repeatable.",
)
@click.option("--verbose", is_flag=True, help="Show what the program writes to its standard error.")
@json_option
@click.pass_context
def conformance(
    ctx: click.Context,
    entrypoint: str | None,
    vectors: Path | None,
    classes: tuple[str, ...],
    verbose: bool,
    as_json: bool,
) -> None:
    """Ask a program in any language about every test vector, and say what it may claim.

    The program answers requests on its standard input, a line of JSON each, as spec/conformance.md says.
    Exit 1 where an answer was wrong.
    """
    from lora_registry.conformance.claim import examine
    from lora_registry.conformance.program import Program, split
    from lora_registry.conformance.vectors import find, load

    words = [sys.executable, "-m", "lora_registry.conformance"] if entrypoint is None else split(entrypoint)
    corpus = load(find() if vectors is None else vectors)
    quiet = as_json or verbose  # two writers on one line make neither readable
    with Program(words, verbose=verbose) as program, progress("asking", unit="vectors", quiet=quiet) as advance:
        report = examine(program, corpus, classes, advance)
    if as_json:
        print_json(report.to_json())
    else:
        _show(report)
    if not report.holds:
        ctx.exit(EXIT_FINDINGS)


def _show(report: Report) -> None:
    if report.hello is not None:
        click.echo(printable(f"{report.hello.name} {report.hello.version}"))
    for claim in report.claims:
        click.echo(click.style(printable(str(claim)), fg="green" if claim.holds else "red"))
    for failure in report.failures[:_SHOWN]:
        _show_failure(failure)
    if len(report.failures) > _SHOWN:
        click.echo(f"… and {len(report.failures) - _SHOWN} more; --json lists them all")
    if report.failures:
        click.echo(plural(len(report.failures), "failure"))


def _show_failure(failure: Failure) -> None:
    about = f"{failure.why}: {', '.join(failure.rules)}" if failure.rules else failure.why
    place = f"{failure.class_name} {failure.id}".strip()
    click.echo(f"{click.style('failed', fg='red')}  {printable(place)} ({printable(about)})")
    click.echo(f"        {printable(failure.reason)}")
    for line in failure.stderr:
        click.echo(f"        | {printable(line)}")
