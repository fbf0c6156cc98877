"""Which converters are installed. Built-in ones come through the same door as third-party ones.

The entry points are scanned when a conversion is asked for, never when loreg starts: the scan costs
some 40 ms. ``LOREG_PLUGINS=""`` turns the converters of other distributions off; ``LOREG_PLUGINS=a,b``
leaves on those named.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from lora_registry.convert.protocol import Converter
from lora_registry.errors import NotFoundError, UnsupportedError, UsageError

GROUP = "loreg.converters"
OWN_DISTRIBUTION = "loreg"


@cache
def converters() -> dict[str, Converter]:
    """Every converter that is installed and switched on, by name."""
    from importlib.metadata import entry_points

    switch = os.environ.get("LOREG_PLUGINS")
    allowed = None if switch is None else {name.strip() for name in switch.split(",") if name.strip()}
    found: dict[str, Converter] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        own = point.dist is not None and point.dist.name == OWN_DISTRIBUTION
        if own or allowed is None or point.name in allowed:
            if not own and point.name in found:
                continue  # a plugin does not replace a built-in converter by taking its name
            found[point.name] = point.load()
    return found


def converter(name: str) -> Converter:
    """The converter that users call ``name``.

    Raises:
        UsageError: there is none; the message lists those there are.
    """
    known = converters()
    if name not in known:
        raise UsageError(f"no converter is called {name!r}; known: {', '.join(['native', *known])}")
    return known[name]


def detect(path: Path) -> Converter:
    """The one converter that recognizes ``path``.

    Raises:
        NotFoundError: nothing is there.
        UnsupportedError: no converter recognizes it, or more than one does.
    """
    if not path.exists():
        raise NotFoundError(f"no such file or folder: {path}")
    matches = [candidate for candidate in converters().values() if candidate.sniff(path)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(candidate.name for candidate in matches)
        raise UnsupportedError(f"{path} looks like several formats ({names}); say which with --from")
    raise UnsupportedError(f"{path} is no adapter in a format that loreg reads: native, {', '.join(converters())}")
