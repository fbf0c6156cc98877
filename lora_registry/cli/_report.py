"""What a conversion reports, for people, and the refusal that ``--strict`` asks for."""

from __future__ import annotations

from itertools import islice

import click

from lora_registry.convert.report import Outcome, Report
from lora_registry.errors import UnsupportedError
from lora_registry.text import printable

_COLORS = {Outcome.KEPT: "green", Outcome.DERIVED: "cyan", Outcome.DROPPED: "yellow"}
_SHOWN = 12


def print_report(report: Report | None) -> None:
    """Print what was kept under another form, derived or dropped; the losses first."""
    if report is None:
        return
    losses = list(report.losses)
    others = [entry for entry in report.entries if entry.outcome is not Outcome.DROPPED]
    shown = [*losses, *islice(others, max(0, _SHOWN - len(losses)))]
    for entry in shown:
        label = click.style(entry.outcome.value.ljust(7), fg=_COLORS[entry.outcome])
        click.echo(f"{label}  {printable(entry.subject)}: {printable(entry.reason)}")
    if len(shown) < len(report.entries):
        click.echo(f"… and {len(report.entries) - len(shown)} more; --json lists them all")


def refuse_losses(report: Report | None, *, strict: bool) -> None:
    """Raise if ``strict`` and the conversion dropped something.

    Raises:
        UnsupportedError: names the first loss and counts the others.
    """
    if strict and report is not None and report.losses:
        first, more = report.losses[0], len(report.losses) - 1
        raise UnsupportedError(
            f"--strict: the conversion drops {first.subject} ({first.reason})" + (f" and {more} more" if more else "")
        )
