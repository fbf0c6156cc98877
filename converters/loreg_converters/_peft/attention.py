"""The output projection of ``nn.MultiheadAttention``, to which PEFT adds its change twice.

``MultiheadAttention.merge`` of PEFT (tuners/lora/layer.py, from its first version, pull request 1324, to 0.21.2) adds
s·B·A to ``out_proj.weight`` and then calls the merge of that layer, which adds it again. The forward pass merges too,
so this is what such an adapter was trained with and what it computes: W + 2·s·B·A. Pull request 3774 mends it; which
release will have that is not known, so that a file of a later one is refused.
"""

from __future__ import annotations

from loreg_converters._peft.versions import release

OUT_PROJ_TIMES = 2
"""How often PEFT adds the change of ``out_proj``."""

_LAST = (0, 21, 2)
"""The last release that was looked at."""


def out_proj_problem(version: str | None) -> str | None:
    """Why nobody knows how often the PEFT of ``peft_version`` adds the change; None where it is twice.

    A file without a version is from before 0.18.
    """
    if version is None:
        return None
    found = release(version)
    if found is not None and found.numbers <= _LAST:
        return None
    return (
        f"peft_version {version!r}: up to {'.'.join(map(str, _LAST))} PEFT adds the change of out_proj twice, and of "
        "this version it is not known"
    )
