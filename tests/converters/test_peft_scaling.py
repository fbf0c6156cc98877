"""Scales and the patterns that choose them: exactly PEFT's numbers, by matching that cannot hang."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loreg_converters._peft.regex import PatternError, Regex, SuffixPattern
from loreg_converters._peft.scaling import Scaling, exact_alpha, synthesize
from peft.utils.other import get_pattern_key

RANKS = st.integers(1, 512)
NAMES = st.from_regex(r"[abx]{1,3}(\.[ab0-9]{1,3}){0,3}", fullmatch=True)


@given(alpha=st.one_of(st.integers(0, 1 << 20), st.floats(-1e6, 1e6)), rank=RANKS, rslora=st.booleans())
def test_scale_of_any_config_is_found_again_exactly(alpha: float, rank: int, rslora: bool) -> None:
    """For every alpha and rank there is an alpha that gives the same float64 scale."""
    scale = Scaling(rank, alpha, rslora).compiled().scale("x")
    found = exact_alpha(scale, rank, rslora=rslora)
    assert found is not None
    assert (found / math.sqrt(rank) if rslora else found / rank) == scale


@given(st.dictionaries(NAMES, st.tuples(st.integers(0, 6).map(lambda n: 1 << n), st.floats(-1e3, 1e3)), min_size=1))
def test_made_scaling_gives_every_target_its_scale(targets: dict[str, tuple[int, float]]) -> None:
    """With ranks that are powers of two every scale is exact, and patterns hit their own target alone."""
    scaling = synthesize(targets)
    assert isinstance(scaling, Scaling)
    compiled = scaling.compiled()
    for name, (rank, scale) in targets.items():
        assert compiled.rank(name) == rank
        assert compiled.scale(name) == scale
        key = get_pattern_key(list(scaling.alpha_pattern), name)
        alpha = scaling.alpha_pattern.get(key, scaling.alpha)
        assert (alpha / math.sqrt(rank) if scaling.rslora else alpha / rank) == scale


@given(
    targets=st.dictionaries(NAMES, st.tuples(RANKS, st.floats(0.001, 1e3)), min_size=1, max_size=4),
)
def test_a_scale_is_exact_or_refused(targets: dict[str, tuple[int, float]]) -> None:
    """Nothing is ever rounded: the scaling gives each scale to the last bit, or names those that it cannot."""
    scaling = synthesize(targets)
    if isinstance(scaling, list):
        assert scaling
        assert all(exact_alpha(targets[name][1], targets[name][0], rslora=False) is None for name in scaling)
    else:
        compiled = scaling.compiled()
        assert all((compiled.rank(name), compiled.scale(name)) == wanted for name, wanted in targets.items())


@given(
    keys=st.lists(
        st.one_of(
            NAMES,
            st.from_regex(r"\^?[ab](\.|\\\.)[ab]\$?", fullmatch=True),
            st.sampled_from(
                [".*a", "[ab]+", "a|b", r"(a|b)\.\d+", "x?", "(?:a){2}", "a{1,2}.b", r"\w+", "[^a]", "a*?"]
            ),
        ),
        max_size=4,
    ),
    name=NAMES,
)
def test_patterns_match_as_pefts_do(keys: list[str], name: str) -> None:
    """The first pattern that matches is the one that PEFT's own function finds."""
    found = next((key for key in keys if SuffixPattern(key).matches(name)), name)
    assert found == get_pattern_key(keys, name)


PIECES = ["a", "b", ".", r"\.", "[ab]", "[^b]", r"\d", r"\w", "(a|b)", "(?:ab|c)", "(a|)", "^", "$", "(a*)", "(b+)"]
REPEATS = ["", "", "", "*", "+", "?", "{2}", "{1,2}", "{,1}", "{1,}", "*?", "+?"]


@given(
    pattern=st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(REPEATS)), max_size=5).map(
        lambda parts: "".join(piece if piece in "^$" else piece + repeat for piece, repeat in parts)
    ),
    name=st.text("abc.0", max_size=6),
)
def test_automaton_agrees_with_re(pattern: str, name: str) -> None:
    """Whatever both can parse, they agree about."""
    assert Regex(pattern).matches(name) == (re.fullmatch(pattern, name) is not None)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?=a)",
        "(?<!a)b",
        r"(a)\1",
        "a**",
        "*",
        "(a",
        "a)",
        "[a",
        "[z-a]",
        "\\",
        r"\bq",
        "(?i)a",
        "a{2,1}",
        "x" * 9000,
        "(" * 60,
    ],
)
def test_what_is_no_plain_regular_expression_is_refused(pattern: str) -> None:
    """Look-around, back-references and broken syntax are errors, not guesses."""
    with pytest.raises(PatternError):
        Regex(pattern)


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|a)*$", "(a|aa)+$", "(.*a){12}", "((a*)*)*b", "(()*)*b", "a?" * 30 + "a" * 30]
)
def test_catastrophic_patterns_take_no_time(pattern: str) -> None:
    """What takes a backtracking matcher 2**n steps is answered here; the test would not end otherwise."""
    assert not Regex(pattern).matches("a" * 29 + "!")


@pytest.mark.parametrize("pattern", ["((a{900}){900}){900}", "((){900}){900}"])
def test_exploding_repetitions_are_refused(pattern: str) -> None:
    """Counted repetitions multiply; the automaton has a limit."""
    with pytest.raises(PatternError, match="states"):
        Regex(pattern)


def test_too_many_patterns_are_refused_and_whole_names_are_not_counted() -> None:
    """Patterns that are tried in turn have a limit; anchored whole names are looked up."""
    names = [f"model.layers.{index}.q" for index in range(20_000)]
    scaling = synthesize({name: (1 << index % 3, float(index)) for index, name in enumerate(names)})
    assert isinstance(scaling, Scaling)
    compiled = scaling.compiled()
    assert [compiled.scale(name) for name in names[::4999]] == [0.0, 4999.0, 9998.0, 14997.0, 19996.0]
    with pytest.raises(PatternError, match="too many"):
        Scaling(1, 1, rank_pattern={f"layer{index}.q": 1 for index in range(5000)}).compiled()
    with pytest.raises(PatternError, match="too many"):
        Scaling(1, 1, alpha_pattern={f"layer{index}.*q": 1 for index in range(65)}).compiled()


def test_patterns_beyond_the_limit_are_not_compiled() -> None:
    """Each may need thousands of states: the refusal comes before the next one, which is not even a pattern."""
    patterns = {**{f"layer{index}.*q": 1 for index in range(65)}, "(": 1}
    with pytest.raises(PatternError, match="too many"):
        Scaling(1, 1, rank_pattern=patterns).compiled()


def test_first_match_wins_between_whole_names_and_patterns() -> None:
    """A whole name is looked up and still waits for the patterns before it."""
    before = Scaling(1, 1, alpha_pattern={"a.b": 2, r"^x\.a\.b": 3}).compiled()
    after = Scaling(1, 1, alpha_pattern={r"^x\.a\.b": 3, "a.b": 2}).compiled()
    assert (before.alpha("x.a.b"), after.alpha("x.a.b"), after.alpha("y.a.b"), after.alpha("z")) == (2, 3, 2, 1)
