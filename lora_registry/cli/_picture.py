"""Where an adapter acts, as a picture: how large each change is, layer by layer."""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Mapping

_SHADES = " ░▒▓█"
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def family(name: str) -> str:
    """``model.layers.*.q_proj.weight`` for the same tensor of every layer."""
    return _NUMBER.sub("*", name)


def layer(name: str) -> int:
    """The first number in ``name``, which is that of the layer; 0 where there is none."""
    found = _NUMBER.search(name)
    return int(found[0]) if found else 0


def draw(norms: Mapping[str, float]) -> list[str]:
    """One line for each family: its name, a cell for each layer, its smallest and largest norm.

    The shade of a cell is its norm relative to the largest of all, in fifths of it; ``·`` is a layer that the
    adapter does not change.

    Args:
        norms: target name to ‖s·B·A‖, Frobenius.
    """
    rows: dict[str, dict[int, float]] = defaultdict(dict)
    for name, norm in norms.items():
        cells = rows[family(name)]
        cells[layer(name)] = max(norm, cells.get(layer(name), 0.0))
    largest = max(norms.values(), default=0.0)
    last = max((number for cells in rows.values() for number in cells), default=0)
    width = max((len(name) for name in rows), default=0)
    lines = []
    for name, cells in rows.items():
        strip = "".join(_shade(cells[number], largest) if number in cells else "·" for number in range(last + 1))
        lines.append(f"{name.ljust(width)}  {strip}  {min(cells.values()):.3g} to {max(cells.values()):.3g}")
    return lines


def _shade(norm: float, largest: float) -> str:
    shades = _SHADES if _can_print() else " .:*#"
    return shades[0] if largest == 0 else shades[min(len(shades) - 1, int(norm / largest * len(shades)))]


def _can_print() -> bool:
    try:
        _SHADES.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
