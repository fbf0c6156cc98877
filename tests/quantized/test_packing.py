"""Integers of a few bits in larger ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_registry.quantized.packing import pack, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@given(data=st.data())
def test_fields_are_read_from_the_lowest_bits_on(bits: int, data: st.DataObject) -> None:
    """The words of a row are one long integer, and field i stands at bit i times the width."""
    words = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=bits, max_size=2 * bits))
    number = sum(word << (32 * index) for index, word in enumerate(words))
    count = len(words) * 32 // bits
    expected = [(number >> (bits * index)) & (2**bits - 1) for index in range(count)]
    assert unpack(np.array([words], np.uint32), bits, count)[0].tolist() == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_what_is_packed_is_unpacked(bits: int) -> None:
    """Any number of fields: the rest of the last word is zero."""
    rng = np.random.default_rng(0)
    for count in (1, 31, 32, 33, 100):
        fields = rng.integers(0, 2**bits, (3, count), dtype=np.uint8)
        words = pack(fields, bits)
        assert words.shape == (3, -(-count * bits // 32))
        assert np.array_equal(unpack(words, bits, count), fields)
