"""Which element type each tensor of the output has: that of the base, unless a rule says otherwise."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Self

from lora_registry.adapter import Json
from lora_registry.dtypes import BY_TORCH, DTYPES
from lora_registry.errors import UsageError

EVERY = "*"
TOUCHED = "touched"
"""Instead of a pattern: every tensor that the adapter changes."""


@dataclass(frozen=True, slots=True)
class DtypeRule:
    """Tensors whose name matches ``pattern`` are written as ``dtype``."""

    pattern: str
    dtype: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``DTYPE``, ``PATTERN=DTYPE`` or ``touched=DTYPE``.

        Raises:
            UsageError: there is no such type, or none that weights are kept in.
        """
        pattern, equals, name = text.rpartition("=")
        known = DTYPES.get(name) or BY_TORCH.get(name)
        if known is None or not known.is_wide_float:
            raise UsageError(f"{name!r} is no type to merge into: F32, BF16, F16 or F64")
        if equals and not pattern:
            raise UsageError(f"{text!r} names no tensors before the '='")
        return cls(pattern or EVERY, known.name)

    def matches(self, name: str, *, touched: bool) -> bool:
        """Whether the rule is for the tensor ``name``, which the adapter changes or not."""
        return touched if self.pattern == TOUCHED else fnmatchcase(name, self.pattern)

    def __str__(self) -> str:
        return self.dtype if self.pattern == EVERY else f"{self.pattern}={self.dtype}"


@dataclass(frozen=True, slots=True)
class DtypeRules:
    """Rules in the order in which they were given; of those that match a tensor, the last decides.

    Only floating-point tensors of 16 bits or more are converted; integers, booleans and float8 stay.
    """

    rules: tuple[DtypeRule, ...] = ()

    @classmethod
    def parse(cls, texts: str | Iterable[str] | None) -> Self:
        """Read the rules; see :meth:`DtypeRule.parse`."""
        if texts is None:
            return cls()
        return cls(tuple(DtypeRule.parse(text) for text in ([texts] if isinstance(texts, str) else texts)))

    def dtype(self, name: str, own: str, *, touched: bool) -> str:
        """The element type in the output of the tensor ``name``, which is of the type ``own`` in the base."""
        if not DTYPES[own].is_wide_float:
            return own
        return next((rule.dtype for rule in reversed(self.rules) if rule.matches(name, touched=touched)), own)

    def require_use(self, tensors: Iterable[tuple[str, bool]]) -> None:
        """Refuse a rule that is for no tensor: a pattern with a typing error would be ignored in silence.

        Args:
            tensors: the name of every tensor that can be converted, and whether the adapter changes it.

        Raises:
            UsageError: there is such a rule.
        """
        known = list(tensors)
        for rule in self.rules:
            if not any(rule.matches(name, touched=touched) for name, touched in known):
                raise UsageError(f"dtype {str(rule)!r}: no floating-point tensor has such a name")

    def to_json(self) -> Json:
        """Null, the one type that all tensors get, or the list of the rules."""
        if not self.rules:
            return None
        return str(self.rules[0]) if len(self.rules) == 1 else [str(rule) for rule in self.rules]
