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
    named = {module for module in modules if module.rpartition(".")[2] in CONV1D_MODULES}
    others = set(modules) - named
    if not named or not others:
        return dict.fromkeys(modules, IN_OUT if flag else OUT_IN)
    transposed = flag if of.conv1d is None else of.conv1d
    if of.conv1d is None:
        for group in (named, others) if flag else (named,):
            if all(modules[module][0] == modules[module][1] for module in group):
                raise UnsupportedError(
                    f"fan_in_fan_out is one flag for all modules, and {min(group)!r} is square: "
                    "nothing in the files decides between [out, in] and [in, out]"
                )
    return {module: IN_OUT if transposed and module in named else OUT_IN for module in modules}
