"""Words and foreign text for people: one line each, and nothing in them that a terminal obeys."""

from __future__ import annotations

from collections.abc import Sequence


def printable(text: str, limit: int | None = None) -> str:
    """``text`` on one line, with everything that does not simply show written as an escape.

    Names in foreign files are not to be trusted: control characters move the cursor, and marks of direction
    reorder what is read (CVE-2021-42574).

    Args:
        text: anything.
        limit: about how many characters of it to show; all of them where None.
    """
    shown = text if limit is None or len(text) <= limit else text[: limit - 1] + "…"
    if shown.isprintable():
        return shown
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii") for letter in shown
    )


def plural(count: int, noun: str) -> str:
    """``1 target``, ``2 targets``, ``2 families``, ``46,080 factors``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("y") else f"{count:,} {noun}s"


def listed(names: Sequence[str], limit: int = 4) -> str:
    """The first few of ``names`` with a count of the others: ``a, b and 3 more``."""
    shown = ", ".join(printable(name, 300) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
