"""float32 that is float32: the shortcuts of matrix products are switched off while something is computed.

TF32 keeps ten bits of a factor, and a merge whose factors lost the others is another merge. torch keeps the choice in
two places, an older and a newer one, for the whole process (torch 2.9 to 2.13, docs/source/notes/cuda.rst), and refuses
to tell the older one where the two differ; setting the older one sets both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in the block, for all threads of this process; afterwards as it was."""
    newer = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [each.fp32_precision for each in newer]
    try:
        older = torch.get_float32_matmul_precision()
    except RuntimeError:  # only the newer one was ever set
        older = "highest"
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for each, precision in zip(newer, before, strict=True):
            each.fp32_precision = precision
