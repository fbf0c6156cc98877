"""What looks like an SPDX license expression (SPDX specification 3.0, annex B).

The grammar is checked and not the list of identifiers, which has hundreds of entries and grows: a
misspelt identifier passes. Names that model hubs use and SPDX does not list are known, since they are what
stands in most adapters that fail.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\s*(\(|\)|(?:DocumentRef-[A-Za-z0-9.-]+:)?[A-Za-z0-9][A-Za-z0-9.-]*\+?)")
_OPERATORS = frozenset({"AND", "OR", "and", "or"})
_WITH = frozenset({"WITH", "with"})

_HUB_NAMES = frozenset(
    {
        *("other", "unknown", "none", "noassertion", "proprietary", "commercial", "custom", "open", "free"),
        *("gpl", "lgpl", "agpl", "bsd", "cc", "gfdl", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
        *("llama4", "gemma", "openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m"),
        *("bigscience-bloom-rail-1.0", "bigcode-openrail-m", "deepfloyd-if-license"),
    }
)
"""License names of hubs that are no SPDX identifiers, or name a family and no license; lower case."""


def looks_like_spdx(text: str) -> bool:
    """Whether ``text`` follows the grammar and names no license by a word that SPDX does not know."""
    words = _words(text)
    if not words:
        return False
    depth, operand = 0, True  # operand: an identifier or "(" comes next
    after_with = False
    for word in words:
        if word == "(" and operand and not after_with:
            depth += 1
        elif word == ")" and not operand and depth:
            depth -= 1
        elif word in _OPERATORS and not operand:
            operand = True
        elif word in _WITH and not operand:
            operand = after_with = True
        elif operand and _is_name(word):
            operand = after_with = False
        else:
            return False
    return not operand and depth == 0


def _words(text: str) -> list[str]:
    """The words and parentheses of ``text``; empty where something else stands between them."""
    words, position, text = [], 0, text.rstrip()
    while position < len(text):
        match = _WORD.match(text, position)
        if match is None:
            return []
        words.append(match[1])
        position = match.end()
    return words


def _is_name(word: str) -> bool:
    return word not in _OPERATORS | _WITH | {"(", ")"} and word.lower() not in _HUB_NAMES
