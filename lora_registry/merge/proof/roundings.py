"""Orders of arithmetic and rounding in which programs merge, each with the elements that it may give.

One sum has many roundings: of the base as it is loaded, of the factors, of their product, of the change. A
program that follows P-014 and P-015 rounds once. Others round more often and still merge the adapter that they
were given, so each order is told by name instead of being called wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lora_registry.adapter import Target
from lora_registry.dtypes import DTYPES

_EXACT = frozenset({"F32", "F64"})


@dataclass(frozen=True, slots=True)
class Roundings:
    """What is rounded to which type before the last rounding; None where nothing is.

    Attributes:
        base: W.
        factors: the tensors of the adapter.
        product: B·A, or with ``early`` s·B.
        change: s·B·A.
        sum: the sum that a magnitude normalizes, its norm, and the quotient.
        early: s is multiplied into B before the product.
    """

    base: str | None = None
    factors: str | None = None
    product: str | None = None
    change: str | None = None
    sum: str | None = None
    early: bool = False

    def __str__(self) -> str:
        steps = [
            (self.base, "the base"),
            (self.factors, "the factors"),
            (self.product, "the scaled B" if self.early else "the product of the factors"),
            (self.change, "the change"),
            (self.sum, "the sum, its norm and the quotient"),
        ]
        told = [f"{what} to {dtype}" for dtype, what in steps if dtype is not None]
        if not told:
            return "rounded once"
        return f"rounded more than once: first {', '.join(told)}, then the result"


ONCE = Roundings()
"""What P-014 and P-015 ask for, and what ``merge_and_unload()`` of PEFT does with float32 factors."""


def roundings(targets: Sequence[Target], base: str, out: str) -> Iterator[Roundings]:
    """Every order that is known, the likely ones first, beginning with :data:`ONCE`.

    Args:
        targets: the changes of one tensor.
        base: element type of W.
        out: element type of W'.
    """
    own = {tensor.dtype for target in targets for tensor in target.tensors.values()}
    narrow = [dtype for dtype in dict.fromkeys([out, *sorted(own), "BF16", "F16"]) if _rounds(dtype)]
    normalized = any("magnitude" in target.tensors for target in targets)
    bases = [None] if DTYPES[out].size >= DTYPES[base].size else [None, out]
    for rounded in bases:
        yield Roundings(base=rounded)
        for dtype in narrow:
            yield Roundings(base=rounded, change=dtype)
    for rounded in bases:
        for dtype in narrow:
            for factors in (None, dtype):
                yield Roundings(base=rounded, factors=factors)
                yield Roundings(base=rounded, factors=factors, change=dtype)
                if normalized:
                    yield Roundings(base=rounded, factors=factors, change=dtype, sum=dtype)
                for early in (False, True):
                    yield Roundings(base=rounded, factors=factors, product=dtype, change=dtype, early=early)


def _rounds(dtype: str) -> bool:
    return dtype in DTYPES and DTYPES[dtype].is_wide_float and dtype not in _EXACT
