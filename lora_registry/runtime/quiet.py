"""Keep other people's libraries from talking over loreg's own output."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Drop prints, progress bars, warnings and log lines of the block; exceptions pass.

    Streams and log levels belong to the process, so what other threads print meanwhile is dropped too.
    """
    before = logging.root.manager.disable
    sink = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
