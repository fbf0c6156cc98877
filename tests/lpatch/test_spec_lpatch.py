"""The rules and the numbers of spec/lpatch.md are those of the code, and its example arithmetic is what is computed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from lora_registry.lpatch import block, header
from lora_registry.lpatch.product import Product
from lora_registry.lpatch.runs import MEMBERS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "spec/lpatch.md").read_text(encoding="utf-8")
RULES = re.findall(r"^\*\*(L-\d{3})\*\* (.*)$", TEXT, re.MULTILINE)


def test_every_refusal_is_a_rule_of_the_text() -> None:
    """The ids in the messages are defined, those of section 4 that refuse a file are all in use."""
    sources = [path.read_text() for path in (ROOT / "lora_registry/lpatch").glob("*.py")]
    used = {found for source in sources for found in re.findall(r"\((L-\d{3})\)", source)}
    assert used == {rule for rule, sentence in RULES if "MUST refuse" in sentence}
    assert len({rule for rule, _ in RULES}) == len(RULES)


def test_a_rule_is_one_normative_sentence() -> None:
    """It has a key word, which stands in capitals and nowhere else in lower case, and ends once."""
    for _, sentence in RULES:
        assert "MUST" in sentence
        assert sentence.endswith(".")
        assert not re.search(r"[.;] ", sentence)
    assert re.findall(r"\b(must|should|may|shall)\b", TEXT) == []
    assert [line for line in TEXT.splitlines() if not line.startswith("#") and re.search(r"[.?!] [A-Z]", line)] == []


def test_numbers_and_members_are_those_of_the_code() -> None:
    """Sizes, magic and the members of each run."""
    plain = TEXT.replace(" ", "")
    for number in (block.BLOCK, block.SLACK, header.LIMIT):
        assert f"{number}" in plain
    assert header.MAGIC == b"lpatch\r\n"
    for op, members in re.findall(r"^\| `(\w+)` \| ([^|]*) \|", TEXT, re.MULTILINE):
        assert {"op", "length", *re.findall(r"`(\w+)`", members)} == MEMBERS[op]


def test_a_product_is_summed_in_the_order_of_the_text() -> None:
    """L-010, L-011, L-012: one term after the other in binary64, the scale last, one rounding, zeros for NaN.

    The same in Python's own floats, element by element; a sum of terms that cancel shows the order.
    """
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((5, n)).astype(np.float32) for n in (7, 11))
    left[1] *= np.float32(1e8)
    left[2] = -left[1]
    weights = random.standard_normal(77).astype(np.float32)
    weights[3], weights[5] = np.nan, np.inf
    expected = []
    for i in range(7):
        for j in range(11):
            total = float(left[0, i]) * float(right[0, j])
            for k in range(1, 5):
                total = total + float(left[k, i]) * float(right[k, j])
            expected.append(np.float32(float(weights[i * 11 + j]) + total * 0.3))
    wanted = np.array(expected, np.float32).view(np.uint32)
    wanted[3] = 0
    product = Product(left, right, 0.3)
    found = product.predicted(weights.view(np.uint32), 0, "F32", subtract=False)
    np.testing.assert_array_equal(found, wanted)
    middle = product.predicted(weights[8:41].view(np.uint32), 8, "F32", subtract=False)
    np.testing.assert_array_equal(middle, wanted[8:41])
