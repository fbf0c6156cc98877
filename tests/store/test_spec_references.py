"""``spec/registry.md`` section 3: the grammar of references makes exactly what the code reads."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from registry_spec import TEXT, body, example

from lora_registry.digest import Digest
from lora_registry.errors import UsageError
from lora_registry.store import reference
from lora_registry.store.reference import Reference


def regular(grammar: str) -> str:
    """The regular expression of the first symbol of an EBNF grammar of the OCI kind, which has no recursion."""
    rules = dict(re.findall(r"^(\w+)\s*::= (.*)$", grammar, re.MULTILINE))
    token = re.compile(r'"(?P<literal>[^"]*)"|(?P<set>\[(?:[^\]])*\])|(?P<symbol>\w+)|(?P<other>[()|*+?]|\{[\d,]+\}| )')

    def expanded(symbol: str) -> str:
        parts: list[str] = []
        position = 0
        while position < len(rules[symbol]):
            match = token.match(rules[symbol], position)
            assert match is not None, rules[symbol][position:]
            position = match.end()
            if match["literal"] is not None:
                parts.append(f"(?:{re.escape(match['literal'])})")
            elif match["symbol"]:
                parts.append(f"(?:{expanded(match['symbol'])})")
            else:
                parts.append((match["set"] or match["other"]).strip())
        return "".join(parts)

    return expanded(next(iter(rules)))


GRAMMAR = re.compile(regular(body("reference")), re.ASCII)


MADE = st.from_regex(GRAMMAR, fullmatch=True).filter(lambda text: len(text) < 200)
LETTERS = st.sampled_from("ab0AZ_.-:/@[]é\n")


@given(MADE)
def test_what_the_grammar_makes_is_a_reference(text: str) -> None:
    """G-009: Every short text that the grammar makes is read, and printed as it was."""
    assert str(Reference.parse(text, default_tag=None)) == text


COMPONENT, TAG, HOST = (
    st.from_regex(pattern, fullmatch=True).filter(lambda text: len(text) < 60)
    for pattern in (reference._COMPONENT, reference._TAG, reference._HOST)
)


@given(st.lists(COMPONENT, min_size=1, max_size=3), TAG, st.none() | HOST)
def test_what_the_code_reads_is_in_the_grammar(components: list[str], tag: str, host: str | None) -> None:
    """Components, tags and hosts of the code, put together, are refused by both or by neither."""
    text = "/".join([*([host] if host else []), *components]) + f":{tag}"
    try:
        Reference.parse(text)
    except UsageError:
        assert not GRAMMAR.fullmatch(text)
    else:
        assert GRAMMAR.fullmatch(text)


@given(
    st.text(LETTERS, max_size=12)
    | st.text(max_size=12)
    | st.builds(lambda text, at, letter: text[:at] + letter + text[at:], MADE, st.integers(0, 200), LETTERS)
)
def test_what_is_read_follows_the_grammar(text: str) -> None:
    """The code reads exactly the texts that the grammar makes."""
    try:
        Reference.parse(text)
    except UsageError:
        assert not GRAMMAR.fullmatch(text)
    else:
        assert GRAMMAR.fullmatch(text)


@pytest.mark.parametrize("case", example("references"), ids=lambda case: case["text"][:30])
def test_reference_example(case: dict[str, str]) -> None:
    """G-010: The references of the text have the parts that it states."""
    assert GRAMMAR.fullmatch(case["text"])
    parsed = Reference.parse(case["text"])
    digest = None if parsed.digest is None else str(parsed.digest)
    assert (parsed.host, parsed.repository, parsed.tag, digest) == (
        case.get("host"),
        case["repository"],
        case.get("tag"),
        case.get("digest"),
    )


@pytest.mark.parametrize("text", example("no-references"))
def test_text_that_is_no_reference(text: str) -> None:
    """The texts that the text refuses are refused."""
    assert not GRAMMAR.fullmatch(text)
    with pytest.raises(UsageError):
        Reference.parse(text)


def test_reserved_tags() -> None:
    """The tag of the text's index of referrers follows the grammar, and is refused all the same, here as elsewhere."""
    reserved = f"sha256-{Digest.parse(example('digests')['manifest']).hex}"
    assert f"under the tag `{reserved}`" in TEXT
    assert GRAMMAR.fullmatch(f"tone:{reserved}")
    with pytest.raises(UsageError, match="reserved"):
        Reference.parse(f"tone:{reserved}")


def test_limits_of_references() -> None:
    """The numbers of the grammar and beside it are those of the code."""
    assert f"at most {reference.NAME_LENGTH} characters" in TEXT
    assert f"{{0,{reference.TAG_LENGTH - 1}}}" in body("reference")
    assert f"the tag is `{reference.DEFAULT_TAG}`" in TEXT
    longest = "/".join(["a" * 127, "b" * 127])
    assert len(longest) == reference.NAME_LENGTH
    assert Reference.parse(longest).repository == longest
    with pytest.raises(UsageError):
        Reference.parse(longest + "b")
    with pytest.raises(UsageError):
        Reference.parse("h:1/" + longest[4:] + "b")
