"""The version of PEFT that wrote a file, on which the meaning of some tensors depends."""

from __future__ import annotations

import re
from typing import NamedTuple


class Release(NamedTuple):
    """A version, taken apart.

    Attributes:
        numbers: major, minor and patch.
        development: whether it is one from between two releases.
    """

    numbers: tuple[int, int, int]
    development: bool


def release(version: str) -> Release | None:
    """``peft_version`` taken apart; None for a text that is no version."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(.*)", version, re.ASCII)
    if found is None:
        return None
    return Release((int(found[1]), int(found[2]), int(found[3] or 0)), "dev" in found[4])
