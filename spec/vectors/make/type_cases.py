"""Element types that go together and those that do not (P-054), and every number of the types of eight bits."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise

import samples
from container import Tensor, tensor
from draft import one
from floats import INTEGERS, is_finite, value_of
from merge_cases import based
from merging import merging
from vector import Vector

RULES = ("P-054",)


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from _bit_by_bit()
    yield from _sums()
    yield from _values()
    yield from _eight_bits()


def _bit_by_bit() -> Iterator[Vector]:
    """A value of the base tensor's own type, whatever that is."""
    for dtype in INTEGERS:
        draft = samples.full(tensor(dtype, (3,), [1, 0, 1]))
        yield merging(
            f"full-in-{dtype}", f"a value of {dtype} in place of {dtype}", draft, based(draft, dtype), rules=RULES
        )
    for dtype in ("I32", "U8", "BOOL"):
        rows = [1, 0, 1, 0, 1, 1]
        draft = samples.tokens()
        draft.put("w", "value", tensor(dtype, (2, 3), rows))
        yield merging(
            f"tokens-in-{dtype}", f"rows of {dtype} in a table of {dtype}", draft, based(draft, dtype), rules=RULES
        )
    wide = [(1 << 63) - 1, -(1 << 63), (1 << 53) + 1]
    draft = one({"value": tensor("I64", (1, 3), wide)}, kind="tokens", layout=samples.IN_OUT, shape=[2, 3], rows=[1])
    base = based(draft, "I64", [*wide[::-1], 0, 0, 0])
    yield merging("tokens-in-I64", "rows of integers that binary64 does not hold", draft, base, rules=RULES)
    draft = samples.tokens("I16", rows=[0, 5], length=6)
    yield merging("tokens-length-in-I16", "a table of integers that grows", draft, based(draft, "I16"), rules=RULES)


def _sums() -> Iterator[Vector]:
    """Changes of integers: there is no sum that is rounded to them."""
    drafts = {
        "linear": samples.linear(), "linear-value": samples.linear({"value": tensor("F32", (3, 4))}),
        "embedding": samples.embedding(), "conv": samples.conv(1), "experts": samples.experts(),
        "bias": samples.bias(), "loha": samples.loha(), "lokr": samples.lokr(), "sparse": samples.sparse(),
    }  # fmt: skip
    for name, draft in drafts.items():
        base = based(draft, "I32")
        yield merging(f"refused-{name}-in-I32", f"{name} on a base of integers", draft, base, rules=RULES)
    for dtype in ("U8", "BOOL", "I64"):
        draft = samples.bias()
        yield merging(f"refused-bias-in-{dtype}", f"bias on a base of {dtype}", draft, based(draft, dtype), rules=RULES)
    draft = samples.bias(scale=0)
    yield merging("refused-zero-in-I8", "nor a change of nothing", draft, based(draft, "I8"), rules=RULES)


def _values() -> Iterator[Vector]:
    """Values of one sort in place of the other."""
    for dtype, other in (("F32", "I32"), ("I32", "F32"), ("I8", "I32"), ("U8", "I8"), ("BOOL", "U8"), ("I64", "F64")):
        why = f"a value of {dtype} in place of {other}"
        draft = samples.full(tensor(dtype, (3,), [1, 0, 1]))
        yield merging(f"refused-full-{dtype}-in-{other}", why, draft, based(draft, other), rules=RULES)
        draft = samples.tokens()
        draft.put("w", "value", tensor(dtype, (2, 3), [1, 0, 1, 0, 1, 1]))
        yield merging(f"refused-tokens-{dtype}-in-{other}", f"rows: {why}", draft, based(draft, other), rules=RULES)
    draft = samples.tokens("F32", rows=[5], length=6)
    why = "a table of integers does not grow by floats"
    yield merging("refused-tokens-length-F32-in-I16", why, draft, based(draft, "I16"), rules=RULES)


def _eight_bits() -> Iterator[Vector]:
    """Every finite number of the types of eight bits, and those that are none (section 6)."""
    for dtype in ("F8_E4M3", "F8_E5M2"):
        bits = [word for word in range(256) if is_finite(dtype, word)]
        draft = samples.full(Tensor(dtype, (len(bits),), bytes(bits)))
        yield merging(f"full-all-{dtype}", f"all finite numbers of {dtype}", draft, based(draft, "F32"))
        halves = [Fraction(value_of(dtype, word)) for word in bits if word < 128]
        draft = samples.full(tensor("F32", (len(halves) - 1,), [(a + b) / 2 for a, b in pairwise(halves)]))
        yield merging(f"ties-all-{dtype}", f"what lies halfway between numbers of {dtype}", draft, based(draft, dtype))
        special = [word for word in range(256) if not is_finite(dtype, word)]
        for word in (special[0], special[-1]):
            draft = samples.full(Tensor(dtype, (1,), bytes([word])))
            why = f"{word:02X} of {dtype} is no finite number"
            yield merging(f"refused-{dtype}-{word:02X}", why, draft, based(draft, "F32"), rules=("P-016",))
