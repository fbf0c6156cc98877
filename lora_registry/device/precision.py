"""float32 that is float32: the shortcuts of matrix products are switched off while something is computed.

TF32 keeps ten bits of a factor, and a merge whose factors lost the others is another merge. torch keeps the choice in
two places, an older and a newer one, for the whole process (torch 2.9 to 2.13, docs/source/notes/cuda.rst), and refuses
to tell the older one where the two differ; setting the older one sets both. Autocast, which a thread switches on for
itself, would make the same products in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch


class _Choice:
    """What this process had chosen before the first of those who compute at a time, for the last of them to set."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._computing = 0
        self._older = "highest"
        self._newer: tuple[str, ...] = ()

    def suspend(self) -> None:
        with self._lock:
            if not self._computing:
                self._newer = tuple(each.fp32_precision for each in _products())
                try:
                    self._older = torch.get_float32_matmul_precision()
                except RuntimeError:  # only the newer one was ever set
                    self._older = "highest"
                torch.set_float32_matmul_precision("highest")
            self._computing += 1

    def restore(self) -> None:
        with self._lock:
            self._computing -= 1
            if not self._computing:
                torch.set_float32_matmul_precision(self._older)
                for each, precision in zip(_products(), self._newer, strict=True):
                    each.fp32_precision = precision


def _products() -> tuple[Any, ...]:
    """The newer place: one for the GPU, and one for the CPU."""
    return torch.backends.cuda.matmul, torch.backends.mkldnn.matmul


_CHOICE = _Choice()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in the block, for all threads of this process, and no autocast for this one; afterwards as it was.

    Several threads may be in such a block at a time.
    """
    _CHOICE.suspend()
    try:
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        _CHOICE.restore()
