"""The scale of a target, as PEFT computes it (``LoraLayer.update_layer`` and ``get_pattern_key``, PEFT 0.21.2).

scale = alpha / r, or alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732); r and alpha each
from the first pattern that matches, else the default.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from loreg_converters._peft.regex import PatternError, SuffixPattern

PATTERNS = 4096
"""Patterns of one kind that are tried in turn for each module."""

OPERATOR_PATTERNS = 64
"""Those among them that need an automaton."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Everything in a config that decides ranks and scales.

    Attributes:
        r: default rank.
        alpha: default lora_alpha.
        rslora: whether the divisor is sqrt(r).
        rank_pattern: pattern to rank, in the order of the config.
        alpha_pattern: pattern to alpha, in the order of the config.
    """

    r: int
    alpha: float
    rslora: bool = False
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)

    def compiled(self) -> CompiledScaling:
        """The same, ready to be asked.

        Raises:
            PatternError: a pattern cannot be matched in bounded time.
        """
        return CompiledScaling(self, FirstMatch(self.rank_pattern), FirstMatch(self.alpha_pattern))


class FirstMatch:
    """The value of the first pattern that matches a name.

    Configs that were made by a program name every module by itself; those patterns are looked up, the
    others are tried in turn, and there may not be too many of them.

    Raises:
        PatternError: a pattern cannot be matched in bounded time, or there are too many.
    """

    def __init__(self, patterns: Mapping[str, float]) -> None:
        self._literal: dict[str, tuple[int, float]] = {}
        self._tried: list[tuple[int, SuffixPattern, float]] = []
        operators = 0
        for index, (key, value) in enumerate(patterns.items()):
            pattern = SuffixPattern(key)
            if pattern.literal is not None:
                self._literal.setdefault(pattern.literal, (index, value))
            else:
                self._tried.append((index, pattern, value))
                operators += not pattern.plain
            if len(self._tried) > PATTERNS or operators > OPERATOR_PATTERNS:  # before the next one is compiled
                raise PatternError(
                    f"the patterns are too many: at most {PATTERNS}, {OPERATOR_PATTERNS} of them with operators"
                )

    def find(self, name: str) -> float | None:
        """The value for ``name``; None where no pattern matches."""
        first, value = self._literal.get(name, (math.inf, None))
        for index, pattern, tried in self._tried:
            if index > first:
                break
            if pattern.matches(name):
                return tried
        return value


@dataclass(frozen=True, slots=True)
class CompiledScaling:
    """Ranks and scales by the name of a module, or of a parameter for ``target_parameters``."""

    scaling: Scaling
    ranks: FirstMatch
    alphas: FirstMatch

    def rank(self, name: str) -> int:
        """The rank that the config gives ``name``."""
        found = self.ranks.find(name)
        return self.scaling.r if found is None else int(found)

    def alpha(self, name: str) -> float:
        """The alpha that the config gives ``name``."""
        found = self.alphas.find(name)
        return self.scaling.alpha if found is None else found

    def scale(self, name: str) -> float:
        """The scale of ``name``, to the last bit what PEFT computes."""
        return _scale(self.alpha(name), self.rank(name), rslora=self.scaling.rslora)


def _scale(alpha: float, rank: int, *, rslora: bool) -> float:
    return alpha / math.sqrt(rank) if rslora else alpha / rank


def exact_alpha(scale: float, rank: int, *, rslora: bool) -> float | None:
    """An alpha from which PEFT computes exactly ``scale``; None where no float64 gives it.

    The quotients of float64 numbers by ``rank`` lie up to two units in the last place apart, so for some
    pairs there is none.
    """
    alpha = scale * (math.sqrt(rank) if rslora else rank)
    if not math.isfinite(alpha):
        return None
    candidates = [alpha]
    below = above = alpha
    for _ in range(2):
        below, above = math.nextafter(below, -math.inf), math.nextafter(above, math.inf)
        candidates += [below, above]
    for candidate in candidates:
        if math.isfinite(candidate) and _scale(candidate, rank, rslora=rslora) == scale:
            return int(candidate) if candidate.is_integer() and abs(candidate) < 2**53 else candidate
    return None


def synthesize(targets: Mapping[str, tuple[int, float]]) -> Scaling | list[str]:
    """The shortest scaling that gives every target its rank and, to the last bit, its scale.

    Args:
        targets: name of the module or parameter to (rank, scale).

    Returns:
        The scaling, or the names of the targets whose scale no alpha gives.
    """
    failed: list[str] = []
    for rslora in (False, True):
        alphas = {name: exact_alpha(scale, rank, rslora=rslora) for name, (rank, scale) in targets.items()}
        exact = {name: alpha for name, alpha in alphas.items() if alpha is not None}
        if len(exact) == len(targets):
            return _with_patterns({name: (targets[name][0], alpha) for name, alpha in exact.items()}, rslora=rslora)
        failed = failed or sorted(set(targets) - set(exact))
    return failed


def _with_patterns(targets: Mapping[str, tuple[int, float]], *, rslora: bool) -> Scaling:
    r = Counter(rank for rank, _ in targets.values()).most_common(1)[0][0] if targets else 8
    alpha = Counter(alpha for _, alpha in targets.values()).most_common(1)[0][0] if targets else 8
    return Scaling(
        r,
        alpha,
        rslora,
        {whole_name(name): rank for name, (rank, _) in targets.items() if rank != r},
        {whole_name(name): alpha_ for name, (_, alpha_) in targets.items() if alpha_ != alpha},
    )


def whole_name(name: str) -> str:
    """A pattern that matches ``name`` alone, where PEFT would also take names that end in it."""
    return f"^{re.escape(name)}"
