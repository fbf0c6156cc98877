"""W' of a target and a base tensor: exact, then rounded once (sections 5 and 10)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, isqrt, lcm, prod
from typing import Any

import floats
from change import Numbers, change, places, stored
from container import Tensor
from floats import FLOATS

REPLACING = ("full", "tokens")
"""The kinds whose value replaces elements of the base tensor."""

_BITS = 400
"""Binary places to which a root is taken before it is rounded; asserted to be enough."""

WIDE_ULP = 4
"""What few products and sums, a norm and a quotient err by at most where the result has their arithmetic's type."""


@dataclass(frozen=True, slots=True)
class Merged:
    """A changed tensor, and how far from it an answer is allowed to be, in units in the last place."""

    tensor: Tensor
    ulp: int


def fits(target: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Tensor) -> bool:
    """Whether the element types go together (P-054)."""
    floating = base.dtype in FLOATS
    if target["kind"] not in REPLACING:
        return floating
    dtype = tensors["value"].dtype
    return dtype == base.dtype or (floating and dtype in FLOATS)


def merge(target: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Tensor) -> Merged | None:
    """W' in the element type of the base; None where types do not fit (P-054), or it is not finite (P-016)."""
    if not fits(target, tensors, base):
        return None
    kind = target["kind"]
    if kind == "full":
        return _rounded(base, base.shape, tensors["value"].values, 0)
    if kind == "tokens":
        return _rows(target, tensors["value"], base)
    weight = tensors.get("value", base)
    specials = {index: value for index, value in enumerate(weight.values) if not isfinite(value)}
    finite = [Fraction(0) if index in specials else Fraction(value) for index, value in enumerate(weight.values)]
    delta = stored(target, change(target, tensors))
    total = [w + d for w, d in zip(finite, delta, strict=True)]
    exact = _is_exact(target, tensors, base.dtype, finite)
    if "magnitude" in tensors:
        return _decomposed(target, tensors["magnitude"], base, total, exact)
    result: list[Fraction | float] = [specials.get(index, value) for index, value in enumerate(total)]
    if kind == "sparse":  # an element without a change keeps its bits, a negative zero too
        touched = {int(position) for position in tensors["index"].values}
        result = [value if index in touched else base.values[index] for index, value in enumerate(result)]
    return _rounded(base, base.shape, result, _ulp(base.dtype, exact=exact), weight)


def _ulp(dtype: str, *, exact: bool) -> int:
    """The distance that the arithmetic of P-014 needs."""
    return 0 if exact else WIDE_ULP if dtype in ("F32", "F64") else 1


def _rows(target: Mapping[str, Any], value: Tensor, base: Tensor) -> Merged | None:
    width = base.shape[1]
    result = base.values + [Fraction()] * ((target.get("length", base.shape[0]) - base.shape[0]) * width)
    for number, row in enumerate(target["rows"]):
        result[row * width : (row + 1) * width] = value.values[number * width : (number + 1) * width]
    return _rounded(base, (len(result) // width, width), result, 0)


def _rounded(
    base: Tensor, shape: tuple[int, ...], values: list[Any], ulp: int, weight: Tensor | None = None
) -> Merged | None:
    """These numbers in the element type of the base; W is ``weight`` where a value stands for it (P-016)."""
    if base.dtype not in FLOATS:
        return Merged(Tensor(base.dtype, shape, floats.encode(base.dtype, values)), ulp)
    bits = [floats.rounded(base.dtype, value) for value in values]
    was = [*map(isfinite, (weight or base).values)]
    before = [*was, *(True for _ in range(len(values) - len(was)))]  # added rows have no W
    if any(finite and not floats.is_finite(base.dtype, word) for finite, word in zip(before, bits, strict=True)):
        return None
    size = floats.size_of(base.dtype)
    return Merged(Tensor(base.dtype, shape, b"".join(word.to_bytes(size, "little") for word in bits)), ulp)


def _decomposed(
    target: Mapping[str, Any], magnitude: Tensor, base: Tensor, total: list[Fraction], exact: bool
) -> Merged | None:
    """Magnitude ∘ total / ‖total‖; the root of a fraction is rounded from both of its sides."""
    bits = [0] * len(total)
    for m, cells in zip(Numbers.of(magnitude).values, places(target), strict=True):
        norm = sum((total[cell] ** 2 for cell in cells), Fraction())
        if norm == 0:
            return None
        for cell in cells:
            bits[cell] = _root(base.dtype, total[cell] * m, norm)
        exact = exact and _divides(base.dtype, m, norm, [total[cell] for cell in cells])
    if not all(floats.is_finite(base.dtype, word) for word in bits):
        return None
    size = floats.size_of(base.dtype)
    data = b"".join(word.to_bytes(size, "little") for word in bits)
    return Merged(Tensor(base.dtype, base.shape, data), _ulp(base.dtype, exact=exact))


def _root(dtype: str, numerator: Fraction, norm: Fraction) -> int:
    """The bits of numerator / √norm, correctly rounded."""
    square = numerator**2 / norm
    below = Fraction(isqrt(square.numerator * 4**_BITS // square.denominator), 2**_BITS)
    above = below if below**2 == square else below + Fraction(1, 2**_BITS)
    sign = -1 if numerator < 0 else 1
    bits = {floats.rounded(dtype, sign * side) for side in (below, above)}
    assert len(bits) == 1, "more binary places are needed"
    return bits.pop()


def _divides(dtype: str, m: Fraction, norm: Fraction, row: list[Fraction]) -> bool:
    """Whether every way of computing the row is exact: its norm, and quotients and products by it."""
    root = Fraction(isqrt(norm.numerator), isqrt(norm.denominator))
    if root**2 != norm:
        return False
    wide = _wide(dtype)
    numbers = [norm, root, m / root, *(x * m for x in row), *(x / root for x in row), *(x * m / root for x in row)]
    return all(floats.value_of(wide, floats.rounded(wide, number)) == number for number in numbers)


def _wide(dtype: str) -> str:
    """The least arithmetic for a base of this type (P-014)."""
    return "F64" if dtype == "F64" else "F32"


def _is_exact(
    target: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: str, weight: list[Fraction]
) -> bool:  # fmt: skip
    """Whether all sums are exact in every order: multiples of one unit, and too few of them to need a rounding."""
    scale = Fraction(target["scale"])
    factors = [item for role, item in tensors.items() if role not in ("magnitude", "value", "index")]
    unit = scale.denominator * prod(lcm(*(value.denominator for value in Numbers.of(item).values)) for item in factors)
    unit = lcm(unit, *(value.denominator for value in weight))
    larger = {**target, "scale": max(abs(scale), Fraction(1))}
    sums = stored(target, change(larger, tensors, absolute=True))
    most = max(abs(w) + d for w, d in zip(weight, sums, strict=True))
    wide = FLOATS[_wide(dtype)]
    return bool(most * unit <= 2 ** (wide.mantissa + 1) and unit <= 2 ** (wide.bias + wide.mantissa - 1))
