"""In which axis order the base stores a two-dimensional weight.

PEFT asks the module: a Conv1D of transformers stores (in, out), a Linear (out, in). The file keeps only
``fan_in_fan_out``, one flag for all modules, which PEFT sets anew at each module and saves as the last one
left it. A wrong guess about a weight that is not square shows as a wrong shape before anything is merged;
about a square one nothing would show, so there an undecided case is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora_registry.adapter import Layout
from lora_registry.errors import UnsupportedError
from loreg_converters._peft.family import CONV1D_MODULES, Family

OUT_IN: Layout = ("out", "in")
IN_OUT: Layout = ("in", "out")


def linear_layouts(modules: Mapping[str, tuple[int, int]], *, flag: bool, of: Family) -> dict[str, Layout]:
    """The layout of each module's weight.

    Args:
        modules: path to (out, in) as the factors say.
        flag: ``fan_in_fan_out`` of the config.
        of: the model's family.

    Raises:
        UnsupportedError: the adapter mixes both and nothing decides about a square weight.
    """
    named = {module for module in modules if _leaf(module) in CONV1D_MODULES}
    others = set(modules) - named
    if named and others:
        return _mixed(modules, named, others, flag=flag, of=of)
    if flag and not named:
        # Names that transformers does not use for a Conv1D: the flag may be that of the last module only.
        kinds = [{module for module in modules if _leaf(module) == leaf} for leaf in sorted(set(map(_leaf, modules)))]
        _decidable(modules, kinds if len(kinds) > 1 else [])
    return dict.fromkeys(modules, IN_OUT if flag else OUT_IN)


def _leaf(module: str) -> str:
    return module.rpartition(".")[2]


def _mixed(
    modules: Mapping[str, tuple[int, int]], named: set[str], others: set[str], *, flag: bool, of: Family
) -> dict[str, Layout]:
    """Modules with a Conv1D's name beside others: by the family where it is known, else by the flag."""
    transposed = of.conv1d
    if transposed is None:
        transposed = flag
        _decidable(modules, [named, others] if flag else [named])
    return {module: IN_OUT if transposed and module in named else OUT_IN for module in modules}


def _decidable(modules: Mapping[str, tuple[int, int]], groups: list[set[str]]) -> None:
    """Each group has a weight that is not square, by which a wrong guess would show."""
    for group in groups:
        if all(modules[module][0] == modules[module][1] for module in group):
            raise UnsupportedError(
                f"fan_in_fan_out is one flag for all modules, and {min(group)!r} is square: "
                "nothing in the files decides between [out, in] and [in, out]"
            )
