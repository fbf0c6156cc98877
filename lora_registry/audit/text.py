"""Foreign text in messages, made harmless: a finding about a terminal escape must not carry one."""

from __future__ import annotations

import re
from collections.abc import Sequence

CONTROL = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"  # C0 and C1 controls, ESC among them, except tab and line feed
    r"|\r(?!\n)"  # a carriage return alone overwrites the line before it
    "|[\u2028\u2029]"  # line and paragraph separators
    "|[\u202a-\u202e\u2066-\u2069]"  # overrides and isolates that reorder what is read (CVE-2021-42574)
)
"""A character that makes a terminal do something other than show text."""

_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str, limit: int = 80) -> str:
    """``text`` on one line with control characters as escapes, at most about ``limit`` characters of it."""
    shown = text if len(text) <= limit else text[: limit - 1] + "…"
    return _UNSHOWABLE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), shown)


def listed(names: Sequence[str], limit: int = 4) -> str:
    """The first few of ``names`` with a count of the others: ``a, b and 3 more``."""
    shown = ", ".join(printable(name, 300) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def counted(number: int, noun: str) -> str:
    """``1 target``, ``2 targets``, ``2 families``."""
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun[:-1]}ies" if noun.endswith("y") else f"{number} {noun}s"
