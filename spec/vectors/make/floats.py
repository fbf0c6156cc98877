"""The element types: their bits, and exact numbers rounded to them once, to nearest with ties to even."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite, isinf, isnan

Number = int | float | Fraction


@dataclass(frozen=True, slots=True)
class Float:
    """A binary floating-point type.

    Attributes:
        exponent: bits of the exponent.
        mantissa: bits of the mantissa that are stored.
        infinities: whether the largest exponent means infinities and NaN (IEEE 754), or only NaN, where all bits
            of the mantissa are set (OCP 8-bit E4M3).
    """

    exponent: int
    mantissa: int
    infinities: bool = True

    @property
    def size(self) -> int:
        """Bytes of an element."""
        return (1 + self.exponent + self.mantissa) // 8

    @property
    def bias(self) -> int:
        """What is added to an exponent before it is stored."""
        return (1 << (self.exponent - 1)) - 1

    @property
    def beyond(self) -> int:
        """The bits of the first magnitude above the largest finite one."""
        if self.infinities:
            return ((1 << self.exponent) - 1) << self.mantissa
        return (1 << (self.exponent + self.mantissa)) - 1

    @property
    def sign(self) -> int:
        """The bit of the sign."""
        return 1 << (self.exponent + self.mantissa)


FLOATS = {
    "F64": Float(11, 52),
    "F32": Float(8, 23),
    "F16": Float(5, 10),
    "BF16": Float(8, 7),
    "F8_E4M3": Float(4, 3, infinities=False),
    "F8_E5M2": Float(5, 2),
}
INTEGERS = {
    **{f"I{8 * size}": (size, True) for size in (8, 4, 2, 1)},
    **{f"U{8 * size}": (size, False) for size in (8, 4, 2, 1)},
    "BOOL": (1, False),
}
"""Name to bytes, and whether it has a sign."""


def size_of(dtype: str) -> int:
    """Bytes of an element."""
    return FLOATS[dtype].size if dtype in FLOATS else INTEGERS[dtype][0]


def rounded(dtype: str, value: Number) -> int:
    """The bits of ``value`` in ``dtype``, correctly rounded; beyond the largest finite number as the type has it."""
    kind = FLOATS[dtype]
    if isinstance(value, float) and not isfinite(value):
        return _special(kind, value)
    negative = value < 0 or (isinstance(value, float) and str(value) == "-0.0")
    exact = abs(Fraction(value))
    bits = min(_magnitude(kind, exact), kind.beyond)
    return bits | (kind.sign if negative else 0)


def _magnitude(kind: Float, exact: Fraction) -> int:
    """The bits without a sign. A carry out of the mantissa is the next exponent, which is what it has to be."""
    if exact == 0:
        return 0
    exponent = exact.numerator.bit_length() - exact.denominator.bit_length()
    if Fraction(2) ** exponent > exact:
        exponent -= 1
    exponent = max(exponent, 1 - kind.bias)
    steps = round(exact / Fraction(2) ** (exponent - kind.mantissa))  # Fraction rounds ties to even
    return ((exponent + kind.bias - 1) << kind.mantissa) + steps


def _special(kind: Float, value: float) -> int:
    if isnan(value):
        quiet = 1 << (kind.mantissa - 1) if kind.infinities else 0
        return kind.beyond | quiet
    if not kind.infinities:
        raise ValueError("the type has no infinities")
    return kind.beyond | (kind.sign if value < 0 else 0)


def value_of(dtype: str, bits: int) -> Fraction | float:
    """The exact number that ``bits`` stand for; a float where it is an infinity, NaN or a negative zero."""
    kind = FLOATS[dtype]
    negative, magnitude = bool(bits & kind.sign), bits & (kind.sign - 1)
    if magnitude >= kind.beyond:
        if kind.infinities and magnitude == kind.beyond:
            return float("-inf") if negative else float("inf")
        return float("nan")
    exponent, mantissa = divmod(magnitude, 1 << kind.mantissa)
    if exponent:
        mantissa += 1 << kind.mantissa
    value = Fraction(mantissa) * Fraction(2) ** (max(exponent, 1) - kind.bias - kind.mantissa)
    return -0.0 if negative and not value else -value if negative else value


def is_finite(dtype: str, bits: int) -> bool:
    """Whether ``bits`` stand for a finite number."""
    kind = FLOATS[dtype]
    return bits & (kind.sign - 1) < kind.beyond


def encode(dtype: str, values: Iterable[Number]) -> bytes:
    """The little-endian bytes of numbers that ``dtype`` holds exactly; of floats also rounded ones.

    Raises:
        ValueError: an integer or a fraction is not a number of the type.
    """
    return b"".join(_element(dtype, value) for value in values)


def _element(dtype: str, value: Number) -> bytes:
    if dtype in INTEGERS:
        size, signed = INTEGERS[dtype]
        return int(value).to_bytes(size, "little", signed=signed)
    bits = rounded(dtype, value)
    if not (isinstance(value, float) and (isinf(value) or isnan(value))) and value_of(dtype, bits) != value:
        raise ValueError(f"{value} is no number of {dtype}")
    return bits.to_bytes(FLOATS[dtype].size, "little")


def decode(dtype: str, data: bytes) -> list[Fraction | float]:
    """The exact numbers of little-endian bytes."""
    size = size_of(dtype)
    words = [data[start : start + size] for start in range(0, len(data), size)]
    if dtype in INTEGERS:
        return [Fraction(int.from_bytes(word, "little", signed=INTEGERS[dtype][1])) for word in words]
    return [value_of(dtype, int.from_bytes(word, "little")) for word in words]
