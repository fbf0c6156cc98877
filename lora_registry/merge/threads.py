"""Waiting for threads in a program that an interrupt may end at any line."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Thread


def join_begun(threads: Iterable[Thread]) -> None:
    """Wait for those of ``threads`` that run.

    One of which the start was interrupted, or never came, cannot be waited for: ``Thread.join`` raises. Whoever
    calls this has told all of them to stop, and one that begins late does nothing but find that out.
    """
    for thread in threads:
        if thread.is_alive():
            thread.join()
