"""How results look: JSON for programs, tables and plain lines for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from lora_registry.cli._command import json_text
from lora_registry.findings import Finding, Severity
from lora_registry.text import printable

if TYPE_CHECKING:
    from lora_registry.ops.prefix import Prefix

_COLORS = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


def print_json(value: Any) -> None:
    """Print one JSON document, indented."""
    click.echo(json_text(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Iterable[str] = ()) -> None:
    """Print rows under a head: fitted to the terminal, or tab-separated and complete in a pipe.

    Args:
        columns: the head.
        rows: one sequence as long as ``columns`` each.
        right: the columns to align at the right.
    """
    texts = [[printable(str(cell)) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in [list(columns), *texts]:
            click.echo("\t".join(row))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    aligned = set(right)
    for column in columns:
        table.add_column(column, justify="right" if column in aligned else "left", overflow="fold")
    for row in texts:
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)


def print_fields(fields: Iterable[tuple[str, object]]) -> None:
    """Print ``name: value`` lines with the values aligned; empty values are left out."""
    shown = [(name, printable(str(value))) for name, value in fields if value not in (None, "", (), [])]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        click.echo(f"{click.style(name.ljust(width), bold=True)}  {value}")


def print_prefix(prefix: Prefix) -> None:
    """Say under which prefix names were compared, where one was added or dropped (P-013)."""
    if prefix.added or prefix.dropped:
        click.echo(f"names compared under the prefix {printable(str(prefix))}")


def print_findings(findings: Iterable[Finding]) -> None:
    """Print findings, the worst first."""
    order = list(Severity)
    for finding in sorted(findings, key=lambda finding: (order.index(finding.severity), finding.rule)):
        level = click.style(finding.severity.value.ljust(7), fg=_COLORS[finding.severity])
        click.echo(f"{level}  {finding.rule}  {printable(finding.place or '-')}: {printable(finding.message)}")


def size(count: int) -> str:
    """Bytes as people read them: ``3.4 MB`` (powers of 1000)."""
    amount = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    raise AssertionError
