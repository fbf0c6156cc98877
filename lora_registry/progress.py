"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int], None]
"""Called with what is done and what there is to do, in the unit that the function names: bytes, targets, tensors."""


class Counted:
    """Adds up steps for a :data:`Progress`, which may be absent.

    Args:
        progress: whom to tell.
        total: what there is to do.
    """

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0
        self.advance(0)

    def advance(self, step: int) -> None:
        """Say that ``step`` more is done."""
        self._done += step
        if self._progress is not None:
            self._progress(self._done, self._total)
