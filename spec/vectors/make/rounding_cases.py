"""Where rounding decides: ties, subnormal numbers, the largest ones, and what is not finite (P-015, P-016)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import samples
from container import tensor
from draft import one
from floats import FLOATS
from merge_cases import INF, NAN, based, vector_of
from merging import merging
from vector import Vector


def vectors() -> Iterator[Vector]:
    """All of them."""
    for dtype in ("F16", "BF16", "F8_E4M3", "F8_E5M2"):
        yield _ties(dtype)
        yield _subnormal(dtype)
        yield from _largest(dtype)
    yield from _binary32()
    yield from _not_finite()
    yield from _values()


def _ties(dtype: str) -> Vector:
    """Changes of half a unit and of a little more and less than that, up and down, at 1 and −1."""
    half = Fraction(1, 2 << FLOATS[dtype].mantissa)
    little = half / 64
    steps = [half, 3 * half, half - little, half + little, 3 * half - little, 3 * half + little]
    base = [1] * 6 + [-1] * 6
    draft = vector_of([*steps, *(-step for step in steps)])
    why = f"halves of a unit in the last place of {dtype}, to even"
    return merging(f"ties-{dtype}", why, draft, based(draft, dtype, base), rules=("P-015",))


def _subnormal(dtype: str) -> Vector:
    """Results around the smallest magnitudes that the type has."""
    kind = FLOATS[dtype]
    least = Fraction(1, 1 << (kind.bias - 1 + kind.mantissa))
    halves = [Fraction(count, 2) * least for count in (1, 2, 3, 5, -1, -3)]
    normal = least * (1 << kind.mantissa)
    draft = vector_of([*halves, normal - least / 2, least / 4])
    why = f"results among the subnormal numbers of {dtype}"
    return merging(f"subnormal-{dtype}", why, draft, based(draft, dtype, [0] * 8), rules=("P-015",))


def _largest(dtype: str) -> Iterator[Vector]:
    """The last sum that rounds to the largest number, and the first that does not."""
    kind = FLOATS[dtype]
    steps = (1 << (kind.mantissa + 1)) - (1 if kind.infinities else 2)
    top = (1 << kind.exponent) - (2 if kind.infinities else 1)
    unit = Fraction(2) ** (top - kind.bias - kind.mantissa)
    largest = steps * unit
    half, little = unit / 2, unit / 64
    fits = half if steps % 2 == 0 else half - little
    draft = vector_of([fits, -fits])
    why = f"sums that round to the largest numbers of {dtype}"
    yield merging(f"largest-{dtype}", why, draft, based(draft, dtype, [largest, -largest]), rules=("P-015", "P-016"))
    draft = vector_of([0, half + little if steps % 2 == 0 else half])
    why = f"a sum that rounds beyond the largest number of {dtype}"
    yield merging(f"refused-beyond-{dtype}", why, draft, based(draft, dtype, [0, largest]), rules=("P-016",))


def _binary32() -> Iterator[Vector]:
    draft = vector_of([Fraction(1, 1 << 149), Fraction(-3, 1 << 149), Fraction(1, 1 << 127)])
    yield merging("subnormal-F32", "subnormal numbers of binary32 are numbers", draft, based(draft, "F32", [0, 0, 0]))
    draft = vector_of([Fraction(2) ** 127])
    base = based(draft, "F32", [Fraction(2) ** 127])
    yield merging("refused-beyond-F32", "a sum beyond binary32", draft, base, rules=("P-016",))
    draft = vector_of([Fraction(1, 1 << 24), Fraction(3, 1 << 24)], dtype="F64")
    draft.target("w")["scale"] = 0.5
    base = based(draft, "F64", [1, 1])
    yield merging("F64-exact", "a change below what binary32 keeps", draft, base, rules=("P-014",))


def _not_finite() -> Iterator[Vector]:
    draft = vector_of([1, 1, 1])
    base = based(draft, "F32", [INF, -INF, 1])
    yield merging("infinite-base", "what is infinite in the base stays so", draft, base, rules=("P-016",))
    infinities = one({"value": tensor("F16", (2,), [INF, 1])}, kind="full", shape=[2])
    rows = one({"value": tensor("F32", (1, 2), [NAN, 1])}, kind="tokens", layout=samples.IN_OUT, shape=[2, 2], rows=[1])
    added = samples.tokens(rows=[5], length=6)
    added.put("w", "value", tensor("F32", (1, 3), [1, NAN, 1]))
    cases = (
        ("nan-delta", "NaN in a change", vector_of([1, NAN])),
        ("infinite-delta", "an infinity in a change", vector_of([1, -INF])),
        ("nan-factor", "NaN in a factor", samples.linear({"A": tensor("BF16", (2, 4), [NAN] * 8)})),
        ("nan-magnitude", "NaN in a magnitude", samples.linear({"magnitude": tensor("F32", (3,), [1, NAN, 1])})),
        ("infinite-value", "an infinity in a value", infinities),
        ("nan-row", "NaN in a row", rows),
        ("nan-added-row", "NaN in a row that the base does not have", added),
    )
    for name, why, item in cases:
        yield merging(f"refused-{name}", why, item, based(item), rules=("P-016",), code="invalid-input")


def _values() -> Iterator[Vector]:
    """Values: in place of W where there are factors, and otherwise beside it."""
    rules = ("P-016",)
    infinite = samples.linear({"value": tensor("F16", (3, 4), [INF, -INF, *range(10)])})
    yield merging(
        "value-infinite", "what is infinite in the value that stands for W", infinite, based(infinite), rules=rules
    )
    stacked = samples.experts({"value": tensor("F32", (2, 3, 4), [*range(23), -INF])})
    yield merging("value-infinite-experts", "the same of experts", stacked, based(stacked, "BF16"), rules=rules)
    nan = samples.linear({"value": tensor("F32", (3, 4)), "A": tensor("F32", (2, 4), [NAN] * 8)})
    base = based(nan, "F32", [NAN] * 12)
    why = "NaN in a factor, where the base is NaN and the value that stands for it is not"
    yield merging("refused-value-nan-factor", why, nan, base, rules=rules, code="invalid-input")
    beyond = samples.linear({"value": tensor("F32", (3, 4), [1 << 17] * 12)})
    base = based(beyond, "F16", [INF] * 12)
    why = "a value beyond the base's type, where the base is infinite and the value is not"
    yield merging("refused-value-beyond", why, beyond, base, rules=rules)
    large = samples.full(tensor("F32", (2,), [1 << 17, 1]))
    why = "a full value beyond the base's type, where the base is infinite"
    yield merging("full-beyond-infinite", why, large, based(large, "F16", [INF, 2]), rules=rules)
    for dtype in ("F16", "F8_E4M3", "F8_E5M2"):
        why = f"a full value beyond {dtype}"
        yield merging(f"refused-full-beyond-{dtype}", why, large, based(large, dtype), rules=rules)
    grown = samples.tokens(rows=[5], length=6)
    grown.put("w", "value", tensor("F32", (1, 3), [1, 1 << 17, 1]))
    why = "an added row beyond the base's type"
    yield merging("refused-added-beyond", why, grown, based(grown, "F16"), rules=rules)
    grown = samples.tokens(rows=[5], length=6)
    base = based(grown, "F32", [INF, *range(14)])
    yield merging("infinite-row-kept", "what is infinite stays so in a table that grows", grown, base, rules=rules)
    for name, why, row in (
        ("0", "an infinity in place of an infinity", 0),
        ("1", "an infinity in place of a number", 1),
    ):
        rows = one(
            {"value": tensor("F32", (1, 2), [INF, 1])}, kind="tokens", layout=samples.IN_OUT, shape=[2, 2], rows=[row]
        )
        base = {"w": tensor("F32", (2, 2), [INF, 1, 2, 3])}
        yield merging(f"{'refused-' if row else ''}infinite-row-{name}", why, rows, base, rules=rules)
