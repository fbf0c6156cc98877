"""Progress on a terminal, silence in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lora_registry.progress import Progress
from lora_registry.text import printable


@contextmanager
def progress(what: str, *, unit: str = "bytes", quiet: bool = False) -> Iterator[Progress | None]:
    """Show a bar on stderr while the block runs; None where nobody would see it.

    Args:
        what: what is going on, in a few words.
        unit: ``bytes`` shows sizes and rates, anything else shows counts.
        quiet: show nothing even on a terminal.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    counters = [DownloadColumn(), TransferSpeedColumn()] if unit == "bytes" else [MofNCompleteColumn()]
    columns = [TextColumn("{task.description}", markup=False), BarColumn(), *counters, TimeRemainingColumn()]
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(printable(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def status(what: str, *, quiet: bool = False) -> Iterator[Callable[[str], None] | None]:
    """Show a spinner on stderr while the block runs, for work that cannot say how far it is.

    Yields:
        A function that says what is going on now; None where nobody would see it.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.text import Text

    what = printable(what)
    with Console(stderr=True).status(Text(what)) as spinner:  # text is not read as markup: "[/b]" may be a folder
        yield lambda word: spinner.update(Text(f"{what}: {word}"))
