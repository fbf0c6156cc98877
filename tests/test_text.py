"""Text for people: harmless, short, and in good English."""

from __future__ import annotations

import pytest

from lora_registry.text import listed, plural, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\x1b", "a\\nb\\x1b"),
        ("safe \u202e", "safe \\u202e"),
        ("\ud800", "\\ud800"),
        ("naïve 모델 📎", "naïve 모델 📎"),
    ],
)
def test_what_does_not_simply_show_is_escaped(text: str, shown: str) -> None:
    """Control characters, marks of direction and halves of surrogate pairs reach nobody's terminal."""
    assert printable(text) == shown


def test_long_text_is_shortened() -> None:
    """Only where a limit is given."""
    assert printable("x" * 100, 10) == "x" * 9 + "…"
    assert printable("x" * 100) == "x" * 100


def test_lists_are_counted() -> None:
    """The first names stand for the others."""
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef"), 2) == "a, b and 4 more"


def test_nouns_follow_their_number() -> None:
    """One target, no checks, two families."""
    assert (plural(1, "target"), plural(0, "check"), plural(2, "family")) == ("1 target", "0 checks", "2 families")
    assert plural(46080, "factor") == "46,080 factors"
