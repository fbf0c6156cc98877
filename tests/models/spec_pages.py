"""What the tests of several pages of ``spec/`` take out of their text."""

from __future__ import annotations

import re


def rows_of(text: str, *header: str) -> list[list[str]]:
    """The rows of the table in ``text`` with this header, as cells."""
    lines = text.splitlines()
    start = lines.index(f"| {' | '.join(header)} |")
    rows: list[list[str]] = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell: str) -> list[str]:
    """What stands between back quotes in a cell."""
    return re.findall(r"`([^`]*)`", cell)
