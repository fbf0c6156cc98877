"""A merged checkpoint that is quantized itself, held against its base: weight by weight, and part by part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lora_registry.adapter import Adapter
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.quantized import QuantizedCheckpoint
from lora_registry.merge.bases.requantized import open_stored
from lora_registry.merge.proof.expectation import Expected
from lora_registry.merge.proof.formula import matrix_shape
from lora_registry.merge.proof.judge_encoded import Requantized, judge_requantized
from lora_registry.merge.proof.judgement import Answer, Judgement
from lora_registry.merge.proof.matrix import matrix
from lora_registry.merge.proof.untouched import judge_untouched
from lora_registry.ops.arrays import Array
from lora_registry.quantized.encoding.choice import encoder_for
from lora_registry.text import listed

_SAME = "its codes and scales are those of the base"


class StaysQuantized:
    """Judges what is quantized in a merged checkpoint, in the scheme of its base or in another one.

    Args:
        base: what it comes from, as the values that it stands for.
        merged: what is judged, likewise.
        adapter: what was merged; its names tell those of a GGUF file.
        random: draws the blocks that are compared.
        every: all bytes are compared.
    """

    def __init__(
        self,
        base: Checkpoint,
        merged: QuantizedCheckpoint,
        adapter: Adapter | None,
        random: np.random.Generator,
        *,
        every: bool,
    ) -> None:
        self._base = base
        self._merged = merged
        self._random = random
        self._every = every
        self._stored = None
        if isinstance(base, QuantizedCheckpoint) and base.scheme.to_json() == merged.scheme.to_json():
            self._stored = open_stored(base.path, adapter), open_stored(merged.path, adapter)

    @property
    def note(self) -> str:
        """What was found of the scheme."""
        if self._stored is not None:
            return f"the merged checkpoint is quantized as the base is ({self._merged.scheme})"
        return f"the merged checkpoint is quantized ({self._merged.scheme}), and the base is not, or in another way"

    def changed(self, name: str, expected: Expected, rows: Array) -> Judgement:
        """A quantized weight that targets change; the parts that no change concerns have the base's bytes."""
        after, source = self._merged.weight(name), expected.source
        shape = matrix_shape(expected.targets[0].kind, after.shape)
        base = np.zeros(shape, np.float32) if source is None else matrix(self._base, source, shape)
        before = None
        if self._stored is not None and source is not None and self._base.is_computed(source):
            before = self._stored[0].weight(source)
        judged = judge_requantized(Requantized(name, expected.targets, base, before, after), rows)
        if before is None or judged.answer is not Answer.HOLDS:
            return judged
        kept = [part for part in before.parts if part not in encoder_for(before, name).parts]
        other = [part for part in kept if part not in after.parts or self._part(part).answer is not Answer.HOLDS]
        if other:
            return judged.but(Answer.DOES_NOT, f"{listed(other)} is not the base's, and no change concerns it")
        return judged

    def unchanged(self, name: str, source: str) -> Judgement:
        """A quantized weight that no target changes: its parts, or else the values that it stands for."""
        if self._stored is not None and self._base.is_computed(source):
            parts = self._stored[0].weight(source).parts
            if parts == self._merged.weight(name).parts:
                judged = [self._part(part) for part in parts]
                if all(each.answer is Answer.HOLDS for each in judged):
                    return replace(judged[0], name=name, says=_SAME)
        values = judge_untouched(name, source, self._base, self._merged, self._random, every=self._every)
        if self._stored is None and values.answer is Answer.DOES_NOT:
            return values.but(Answer.UNDECIDED, f"it is quantized, {values.says}")
        return values

    def others(self) -> tuple[list[Judgement], list[str]]:
        """Of stored tensors that belong to no weight, such as scales of activations: the judgements, and problems."""
        if self._stored is None:
            return [], []
        base, merged = self._stored
        shown = set(self._base.names())
        for name in self._base.names():
            if self._base.is_computed(name):
                shown.update(base.weight(name).parts)
        hidden = sorted(set(base.names()) - shown)
        gone = [name for name in hidden if name not in merged.places]
        problems = [f"missing: {listed(gone)}"] if gone else []
        return [self._part(name) for name in hidden if name in merged.places], problems

    def _part(self, part: str) -> Judgement:
        """One stored tensor that is to be the base's."""
        assert self._stored is not None
        return judge_untouched(part, part, *self._stored, self._random, every=self._every)
