"""Which converters are installed. Built-in ones come through the same door as third-party ones.

The entry points are scanned when a conversion is asked for, never when loreg starts: the scan costs
some 40 ms. ``LOREG_PLUGINS=""`` turns the converters of other distributions off; ``LOREG_PLUGINS=a,b``
leaves on those named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from lora_registry.convert.protocol import Converter, ForModel
from lora_registry.errors import MachineError, NotFoundError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "loreg.converters"
OWN_DISTRIBUTION = "loreg"


@dataclass(frozen=True, slots=True)
class Installed:
    """What is installed and switched on.

    Attributes:
        converters: those that work, by name.
        broken: plugins that could not be loaded, by name, and why. They do not keep the others from working.
    """

    converters: Mapping[str, Converter]
    broken: Mapping[str, str]


@cache
def installed() -> Installed:
    """Load every converter that is installed and switched on."""
    from importlib.metadata import entry_points

    switch = os.environ.get("LOREG_PLUGINS")
    allowed = None if switch is None else {name.strip() for name in switch.split(",") if name.strip()}
    found: dict[str, Converter] = {}
    broken: dict[str, str] = {}
    points = sorted(entry_points(group=GROUP), key=lambda point: (not _is_own(point), point.name))
    for point in points:
        if point.name in found:
            continue  # a plugin does not replace a built-in converter by taking its name
        if _is_own(point):
            found[point.name] = point.load()
        elif allowed is None or point.name in allowed:
            try:
                found[point.name] = point.load()
            except Exception as error:  # noqa: BLE001 -- code of strangers may raise anything
                broken[point.name] = f"{point.value} cannot be loaded: {type(error).__name__}: {error}"
    return Installed(found, broken)


def converters() -> Mapping[str, Converter]:
    """Every converter that works, by name."""
    return installed().converters


def _is_own(point: EntryPoint) -> bool:
    return point.dist is not None and point.dist.name == OWN_DISTRIBUTION


def converter(name: str) -> Converter:
    """The converter that users call ``name``.

    Raises:
        UsageError: there is none; the message lists those there are.
        MachineError: it is a plugin that cannot be loaded.
    """
    known = converters()
    if name in installed().broken:
        raise MachineError(f"the converter {name!r}: {installed().broken[name]}")
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
    broken = "".join(f"; the plugin {name!r} could not be asked ({why})" for name, why in installed().broken.items())
    known = ", ".join(["native", *converters()])
    raise UnsupportedError(f"{path} is no adapter in a format that loreg reads: {known}{broken}")


def for_model(chosen: Converter, model: Path | None) -> Converter:
    """``chosen`` for the adapters of ``model``, where one is named.

    Raises:
        UsageError: a model is named, and the format does not ask for one.
    """
    if model is None:
        return chosen
    if not isinstance(chosen, ForModel):
        raise UsageError(f"the format {chosen.name!r} is not for one model: leave out --model")
    return chosen.for_model(model)
