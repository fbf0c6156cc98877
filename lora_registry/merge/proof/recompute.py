"""Is a merged checkpoint base + adapter? Recomputed tensor by tensor in float64, whoever merged it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from lora_registry.adapter import Adapter, Json, Kind, Target
from lora_registry.errors import UsageError
from lora_registry.merge.bases.base import Checkpoint
from lora_registry.merge.bases.quantized import QuantizedCheckpoint, open_view
from lora_registry.merge.fitting.fit import Change, fit
from lora_registry.merge.fitting.growth import with_room
from lora_registry.merge.proof.expectation import Expected, expect
from lora_registry.merge.proof.formula import matrix_shape
from lora_registry.merge.proof.judge import judge
from lora_registry.merge.proof.judgement import Answer, Judgement
from lora_registry.merge.proof.matrix import matrix, unrounded_matrix
from lora_registry.merge.proof.stays_quantized import StaysQuantized
from lora_registry.merge.proof.untouched import judge_untouched
from lora_registry.merge.unread import require_plain, require_readable
from lora_registry.ops.arrays import Array, to_array
from lora_registry.ops.mergeable import check_mergeable
from lora_registry.ops.tied import TiedPolicy
from lora_registry.progress import Counted, Progress
from lora_registry.text import listed, plural

ROWS = 32
"""Rows of a changed tensor that are recomputed where not all are."""
_ELEMENTS = 1 << 20  # of one tensor that are looked at where not all are


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputation:
    """What :func:`recompute` found.

    Attributes:
        changed: a judgement for each tensor that a target changes.
        untouched: one for each of the others.
        problems: what is missing, too much, or contradicts itself.
        notes: what was read off the checkpoint.
        every: all rows were recomputed and all bytes compared.
        seed: that the rows and blocks were drawn with.
    """

    changed: tuple[Judgement, ...]
    untouched: tuple[Judgement, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    every: bool
    seed: int

    @property
    def answer(self) -> Answer:
        """The worst of all: one tensor that does not hold is enough, and so is one that nobody can decide."""
        answers = {judged.answer for judged in (*self.changed, *self.untouched)}
        if self.problems or Answer.DOES_NOT in answers:
            return Answer.DOES_NOT
        return Answer.UNDECIDED if Answer.UNDECIDED in answers else Answer.HOLDS

    def to_json(self) -> dict[str, Json]:
        """The findings as a JSON object."""
        return {
            "answer": self.answer.value,
            "holds": self.answer is Answer.HOLDS,
            "every_row": self.every,
            "seed": self.seed,
            "changed": [judged.to_json() for judged in self.changed],
            "untouched": [judged.to_json() for judged in self.untouched],
            "problems": list(self.problems),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For people: tensors with the same finding in one line, and the answer at the end."""
        lines = [f"does not: {problem}" for problem in self.problems]
        lines += _grouped(self.changed)
        lines += _grouped([judged for judged in self.untouched if judged.answer is not Answer.HOLDS])
        sound = [judged for judged in self.untouched if judged.answer is Answer.HOLDS]
        if sound:
            says = ", ".join(sorted({judged.says for judged in sound}))
            lines.append(f"holds: {plural(len(sound), 'other tensor')}: {says}")
        lines += [f"note: {note}" for note in self.notes]
        looked = "every row and byte" if self.every else f"sampled with seed {self.seed}; --all looks at every row"
        return [*lines, f"{self.answer.value}: {self._figures()} ({looked})"]

    def _figures(self) -> str:
        largest = max((judged.largest for judged in self.changed), default=0.0)
        off = max((judged.off for judged in self.changed), default=0.0)
        if not self.changed:
            return "nothing is to be changed"
        lost = [judged.fidelity.relative_error for judged in self.changed if judged.fidelity is not None]
        said = f"at most {largest:.4g} units in the last place, on at most {off:.2%} of the elements of a tensor"
        if not lost:
            return said
        mean = sum(lost) / len(lost)
        return f"{said}; {max(lost):.2%} of the worst change lost to quantization, {mean:.2%} on average"


def _grouped(judged: list[Judgement] | tuple[Judgement, ...]) -> list[str]:
    found = Counter((each.answer, each.says) for each in judged)
    lines = []
    for (answer, says), count in sorted(found.items(), key=lambda item: (-list(Answer).index(item[0][0]), -item[1])):
        names = [each.name for each in judged if (each.answer, each.says) == (answer, says)]
        what = names[0] if count == 1 else f"{plural(count, 'tensor')} ({listed(names, 1)})"
        lines.append(f"{answer.value}: {what}: {says}")
    return lines


def recompute(
    merged_path: str | Path,
    base_path: str | Path,
    adapter: Adapter | None,
    *,
    every: bool = False,
    rows: int = ROWS,
    seed: int = 0,
    tied: TiedPolicy | None = None,
    once_only: bool = False,
    progress: Progress | None = None,
) -> Recomputation:
    """Hold a merged checkpoint against its base and its adapter.

    Nothing of the merge's arithmetic is used. Other orders of rounding than one at the end hold as well, and
    are named; see :class:`~lora_registry.merge.proof.roundings.Roundings`.

    Args:
        merged_path: a Hugging Face folder, a ``.safetensors`` file, or a GGUF file, by whatever program; it may be
            quantized.
        base_path: the base, likewise; of a quantized one, or a GGUF file, the values that it stands for count.
        adapter: what was merged; None to hold the checkpoint against the base itself.
        every: recompute all rows and compare all bytes.
        rows: of each changed tensor otherwise, drawn at random and the first and last among them.
        seed: they are drawn with.
        tied: the policy for tied tensors that has to have been followed; None takes the one that was.
        once_only: more than one rounding does not hold (P-015).
        progress: called with the tensors done and all.

    Raises:
        NotFoundError: a checkpoint does not exist.
        InvalidInputError: a checkpoint is broken, or the adapter does not fit the base.
        UnsupportedError: the base is quantized in a form that is not read, or no merge can hold the adapter.
        InconclusiveError: the merged checkpoint is quantized by a method that is not read.
        UsageError: fewer than one row.
    """
    if rows < 1:
        raise UsageError("verify needs at least one row")
    base, merged = open_view(base_path, adapter), open_view(merged_path, adapter)
    changes: tuple[Change, ...] = ()
    notes = [] if base.scheme is None else [f"the base is quantized ({base.scheme}); its dequantized values count"]
    if adapter is not None:
        check_mergeable(adapter, growth=True)
        fitted = fit(
            adapter,
            base,
            allow_new=True,
            allow_growth=True,
            config=base.config,
            scheme=base.scheme,
            computed=base.is_computed,
        )
        require_plain(base, fitted)
        fitted.require(f"the adapter and {base.path}")
        base, changes = with_room(base, fitted), fitted.changes
        for rule in ("M-004", *(("M-009", "M-010") if base.scheme is not None else ())):
            notes += [finding.message for finding in fitted.findings if finding.rule == rule][:1]
    require_readable(merged, base)
    random = np.random.default_rng(seed)
    expected = expect(changes, base, merged, tied)
    problems, changed, untouched = list(expected.problems), list[Judgement](), list[Judgement]()
    quantized = None
    if isinstance(merged, QuantizedCheckpoint):
        quantized = StaysQuantized(base, merged, adapter, random, every=every)
        notes.append(quantized.note)
        untouched, more = quantized.others()
        problems += more
    done = Counted(progress, len(expected.tensors))
    # The blocks are too small for more threads than one; what overflows is no number, and does not hold.
    with threadpool_limits(1, "blas"), np.errstate(all="ignore"):
        for name, each in sorted(expected.tensors.items()):
            if each.targets:
                count = None if every else rows
                changed.append(_judge(name, each, base, merged, random, quantized, rows=count, once_only=once_only))
            else:
                assert each.source is not None  # a tensor that the base lacks is brought by a target
                if quantized is not None and merged.is_computed(name):
                    untouched.append(quantized.unchanged(name, each.source))
                else:
                    untouched.append(judge_untouched(name, each.source, base, merged, random, every=every))
            done.advance(1)
    return Recomputation(
        changed=tuple(changed),
        untouched=tuple(untouched),
        problems=tuple(problems),
        notes=(*notes, *expected.notes),
        every=every,
        seed=seed,
    )


def _judge(
    name: str,
    expected: Expected,
    base: Checkpoint,
    merged: Checkpoint,
    random: np.random.Generator,
    quantized: StaysQuantized | None,
    *,
    rows: int | None,
    once_only: bool,
) -> Judgement:
    shape = merged.shape(name)
    if expected.source is not None and base.shape(expected.source) != shape:
        return Judgement(
            name=name,
            targets=tuple(target.name for target in expected.targets),
            answer=Answer.DOES_NOT,
            says=f"its shape is {list(shape)}, the base's {list(base.shape(expected.source))}",
            dtype=merged.dtype(name),
            rows=0,
            of=0,
        )
    flat = matrix_shape(expected.targets[0].kind, shape)
    picked = _rows(flat, expected, random, rows)
    if quantized is not None and merged.is_computed(name):
        return quantized.changed(name, expected, picked)
    after = matrix(merged, name, flat)
    if expected.source is None:
        return judge(name, expected.targets, np.zeros(flat, after.dtype), after, picked, once_only=once_only)
    return judge(
        name,
        expected.targets,
        matrix(base, expected.source, flat),
        after,
        picked,
        unrounded=unrounded_matrix(base, expected.source, flat),
        quantized=base.scheme is not None and base.is_computed(expected.source),
        once_only=once_only,
    )


def _rows(shape: tuple[int, int], expected: Expected, random: np.random.Generator, count: int | None) -> Array:
    """Which rows to look at: all, or a few with the first, the last, and some that the adapter names."""
    if count is None or shape[0] <= count:
        return np.arange(shape[0])
    count = max(2, min(count, _ELEMENTS // max(1, shape[1])))
    drawn: list[int] = [0, shape[0] - 1]
    named = [row for target in expected.targets for row in _named(target, shape[1])]
    if named:
        drawn += random.choice(named, min(count, len(named)), replace=False).tolist()
    drawn += random.choice(shape[0], count, replace=False).tolist()
    return np.unique(np.array(drawn, dtype=np.int64))


def _named(target: Target, columns: int) -> list[int]:
    """The rows that a target changes, where it does not change all."""
    if target.kind is Kind.SPARSE:
        found: list[int] = np.unique(to_array(target.tensors["index"]) // columns).tolist()
        return found
    return list(target.rows)
