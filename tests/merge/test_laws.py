"""Laws of merging, over adapters of every kind, layout and type: what is merged holds, and is undone byte by byte."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from adapter_strategies import effort, targets
from hypothesis import assume, given
from hypothesis import strategies as st

from lora_registry.adapter import Adapter, Target
from lora_registry.dtypes import DTYPES
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.container import encode_tensors
from lora_registry.merge.checkpoint import merge_checkpoint
from lora_registry.merge.options import MergeOptions
from lora_registry.merge.proof.judgement import Answer
from lora_registry.merge.proof.recompute import recompute
from lora_registry.merge.undo.patch import write_undo
from lora_registry.merge.undo.unmerge import unmerge
from lora_registry.ops.arrays import from_array, round_to

WIDE = [name for name, dtype in DTYPES.items() if dtype.is_wide_float]


def tamed(target: Target, random: np.random.Generator) -> Target:
    """The target with tensors of ordinary numbers and an ordinary scale; positions stay."""
    tensors = {
        role: from_array(round_to(random.normal(size=tensor.shape), tensor.dtype))
        if DTYPES[tensor.dtype].floating
        else tensor
        for role, tensor in target.tensors.items()
    }
    return replace(target, tensors=tensors, digests={}, scale=float(random.normal()))


@effort(120)
@given(targets("w"), st.sampled_from(WIDE), st.sampled_from([None, *WIDE]), st.integers(0, 1 << 20), st.booleans())
def test_what_is_merged_holds_and_is_undone(target: Target, own: str, out: str | None, seed: int, tame: bool) -> None:
    """Arbitrary bytes are refused or merged; never does the judge, who shares no arithmetic, deny a merge."""
    assume(target.groups == 1 and target.length is None)
    random = np.random.default_rng(seed)
    shape = target.shape
    if shape is None:  # tokens of a table of some length
        shape = (target.rows[-1] + 2, target.tensors["value"].shape[1])
    adapter = Adapter(targets=(tamed(target, random) if tame else target,))
    weight = from_array(round_to(random.normal(size=shape), own).reshape(shape))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base, merged, again = (folder / f"{each}.safetensors" for each in ("base", "merged", "again"))
        base.write_bytes(b"".join(encode_tensors({"w": weight, "other": weight}, {"format": "pt"})))
        try:
            merge_checkpoint(adapter, base, merged, MergeOptions(dtype=out))
        except (InvalidInputError, UnsupportedError):
            assume(False)
        found = recompute(merged, base, adapter, every=True)
        assert found.answer is Answer.HOLDS if tame else found.answer is not Answer.DOES_NOT, found.lines()
        write_undo(base, merged, folder / "patch")
        unmerge(merged, folder / "patch", again)
        assert again.read_bytes() == base.read_bytes()
