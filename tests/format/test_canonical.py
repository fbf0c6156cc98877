"""JSON with one spelling: RFC 8785 out, strict I-JSON in."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_registry.format.canonical import JsonError, decode, encode, number
from lora_registry.format.limits import JSON_DEPTH, JSON_SEPARATORS

NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "ffefffffffffffff": "-1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "c340000000000000": "-9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "44b52d02c7e14af7": "1.0000000000000001e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef4f": "999999999999999900000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "41b3de4355555554": "333333333.33333325",
    "41b3de4355555555": "333333333.3333333",
    "41b3de4355555556": "333333333.3333334",
    "41b3de4355555557": "333333333.33333343",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
"""RFC 8785, appendix B: the bits of a float64, and how it is written."""


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items())
def test_numbers_of_the_rfc(bits: str, text: str) -> None:
    """Each number of RFC 8785, appendix B, is written as it says."""
    (value,) = struct.unpack(">d", bytes.fromhex(bits))
    assert number(value) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_form(value: float) -> None:
    """What is no number in JSON is refused, also deep inside."""
    with pytest.raises(JsonError):
        number(value)
    with pytest.raises(JsonError):
        encode({"a": [value]})


def test_sample_of_the_rfc() -> None:
    """RFC 8785, section 3.2.2: numbers, escapes and literals in one object."""
    source = (
        r'{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        r'"string":"\u20ac$\u000F\u000aA'
        r"'"
        r'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}'
    )
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert encode(decode(source)) == expected.encode()


def test_sorting_of_the_rfc() -> None:
    """RFC 8785, section 3.2.3: keys sort by UTF-16 code units, so a pair of surrogates comes before U+FB33."""
    source = {
        "\u20ac": "Euro Sign",
        "\r": "Carriage Return",
        "\ufb33": "Hebrew Letter Dalet With Dagesh",
        "1": "One",
        "\U0001f600": "Emoji: Grinning Face",
        "\u0080": "Control",
        "\u00f6": "Latin Small Letter O With Diaeresis",
    }
    written = json.loads(encode(dict(source)))
    assert list(written.values()) == [
        "Carriage Return",
        "One",
        "Control",
        "Latin Small Letter O With Diaeresis",
        "Euro Sign",
        "Emoji: Grinning Face",
        "Hebrew Letter Dalet With Dagesh",
    ]


def test_control_characters() -> None:
    """Control characters are escaped in the short form where there is one, and DEL is not escaped."""
    assert encode("\x00\x08\t\n\x0b\x0c\r\x1f\x7f/") == b'"\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f\x7f/"'


@given(st.dictionaries(st.text(), st.integers(0, 9)), st.randoms())
def test_order_of_keys_does_not_matter(value: dict[str, int], random: Any) -> None:
    """Equal objects give equal bytes, in whatever order they were built."""
    pairs = list(value.items())
    random.shuffle(pairs)
    assert encode(dict(pairs)) == encode(dict(value))


@pytest.mark.parametrize(
    "value", [1 << 53, -(1 << 53), 2.0**53, -1e20, "\ud800", {"\udfff": 1}, {1: 2}, b"bytes", {1, 2}]
)
def test_values_without_a_form(value: Any) -> None:
    """Numbers beyond the integers of JSON, lone surrogates, and keys and types that it lacks are refused."""
    with pytest.raises(JsonError):
        encode(value)


def test_separators() -> None:
    """Commas and opening brackets are bounded alike on the way in and on the way out."""
    most = [0] * JSON_SEPARATORS  # one bracket, and a comma less than there are numbers
    assert decode(encode(most)) == most
    for refuse in (lambda: encode([*most, 0]), lambda: decode("[" + "0," * JSON_SEPARATORS + "0]")):
        with pytest.raises(JsonError, match="commas and opening brackets"):
            refuse()
    with pytest.raises(JsonError, match="commas and opening brackets"):
        decode("[" + "{},[]," * (JSON_SEPARATORS // 4) + "0]")


@pytest.mark.parametrize("text", ["{}", '\\"{}', "{}\\\\", "é{}"])
def test_separators_in_strings_do_not_count(text: str) -> None:
    """A string may hold as many as it likes, whatever is escaped in it."""
    many = text.format("[{," * (JSON_SEPARATORS // 2))
    value = decode(f'["{many}", 1]')
    assert isinstance(value, list)
    assert value[1] == 1
    assert decode(encode(value)) == value


@pytest.mark.parametrize(
    "text", ['["' + '\\"' * (1 << 21), '"' * (1 << 22), "[" + " " * (1 << 22), '["' + "\\" * (1 << 22)]
)
def test_strings_without_an_end(text: str) -> None:
    """Skipping strings takes one pass, however many of them look as if they began."""
    with pytest.raises(JsonError):
        decode(text + "," * (JSON_SEPARATORS + 1))


def test_minus_zero_is_no_integer() -> None:
    """-0 is a number with a sign, as in JavaScript, so that no length, offset or row is written so."""
    assert type(decode(b"-0")) is float
    assert type(decode(b"0")) is int
    assert encode(decode(b"[-0,-0.0,0]")) == b"[0,0,0]"


@pytest.mark.parametrize("digits", ["1000000000000000000000", "999999999999999999999", f"-1{'0' * 300}"])
def test_long_digits_are_a_number_with_an_exponent(digits: str) -> None:
    """What is written with an exponent in canonical form is read, however it is spelled; 21 nines round up to 1e21."""
    value = decode(digits)
    assert type(value) is float
    assert value == float(digits)
    assert encode(value) == encode(decode(encode(value))) == number(float(digits)).encode()


@pytest.mark.parametrize("digits", ["9007199254740993", "-100000000000000000000", "999999999999999900000", "9" * 400])
def test_long_digits_without_exponent_are_refused(digits: str) -> None:
    """An integer that some reader rounds is refused, and one that no binary64 reaches."""
    with pytest.raises(JsonError, match="beyond"):
        decode(digits)


def test_depth() -> None:
    """Nesting is bounded alike on the way in and on the way out."""
    value: Any = 0
    for _ in range(JSON_DEPTH):
        value = [value]
    assert decode(encode(value)) == value
    with pytest.raises(JsonError, match="nested"):
        encode([value])
    with pytest.raises(JsonError, match="nested"):
        decode(b"[" + encode(value) + b"]")


@pytest.mark.parametrize(
    "text",
    [
        b"", b" ", b"{", b"[1,]", b"{'a':1}", b"01", b"+1", b".5", b"1.", b"NaN", b"Infinity", b"-Infinity", b"nul",
        b"1 2", b'"\n"', b'"\\x"', b'"\\ud800"', b'"\\udc00\\ud800"', b"\xff", b"\xef\xbb\xbf1", b'{"a":1,"a":1}',
        b'[{"a":{"b":1,"b":2}}]', b"9007199254740992", b"-9007199254740992", b"1e309", b"1e17",
        b"-9007199254740992.0", b"[" * 100_000,
    ],
)  # fmt: skip
def test_texts_that_parsers_disagree_about(text: bytes) -> None:
    """What some parsers accept, or read otherwise, is refused."""
    with pytest.raises(JsonError):
        decode(text)
