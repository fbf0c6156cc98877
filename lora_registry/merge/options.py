"""What shapes the output of a merge: the same options, adapter and base give the same bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from lora_registry.adapter import Json
from lora_registry.errors import UnsupportedError
from lora_registry.merge.dtype_rules import DtypeRules
from lora_registry.ops.tied import TiedPolicy
from lora_registry.text import listed

Device = Literal["cpu", "cuda"]
"""Where the sums are computed. Both round once; they differ in a few elements in a hundred thousand, by one unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeOptions:
    """The options of a merge that a receipt keeps.

    Attributes:
        dtype: rules for the floating-point tensors of the output, of which the last that matches decides: ``F32``,
            ``BF16``, ``F16`` or ``F64`` (or torch's names) for all, ``PATTERN=F32`` for some by name (``*`` stands
            for anything), ``touched=F32`` for those that the adapter changes. None keeps what each tensor has.
        tied: what happens where the adapter changes one of two tied tensors; see
            :data:`~lora_registry.ops.tied.TiedPolicy`.
        allow_new: full targets may bring tensors that the base does not have.
        allow_growth: targets that bring a whole table may bring one with more rows than the base's.
        require_exact: refuse unless fingerprints prove that this is the base the adapter was made for.
        hashed: whether the receipt gets digests of the weights; without, nobody can check or undo the merge by it.
        requantize: of a quantized base, write the changed weights in its own scheme again, instead of all of it
            as the values that it stands for.
        device: where the sums are computed.
    """

    dtype: str | Iterable[str] | None = None
    tied: TiedPolicy = "untie"
    allow_new: bool = False
    allow_growth: bool = False
    require_exact: bool = False
    hashed: bool = True
    requantize: bool = False
    device: Device = "cpu"

    def to_json(self) -> dict[str, Json]:
        """As a receipt has them, defaults included."""
        return {
            "dtype": DtypeRules.parse(self.dtype).to_json(),
            "tied": self.tied,
            "allow_new": self.allow_new,
            "allow_growth": self.allow_growth,
            "require_exact": self.require_exact,
            "hash": self.hashed,
            "requantize": self.requantize,
            "device": self.device,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Self:
        """Those of a receipt: all of them, and no others.

        Raises:
            UnsupportedError: one is missing or not known here, or has a value that is not.
        """
        known = {("hash" if name == "hashed" else name): name for name in cls.__slots__}
        unknown, missing = sorted(said.keys() - known.keys()), sorted(known.keys() - said.keys())
        if unknown or missing:
            what = f"options that are not known here: {listed(unknown)}" if unknown else f"no option {listed(missing)}"
            raise UnsupportedError(f"has {what}")
        strange = sorted(name for name, value in said.items() if not _is_known(name, value))
        if strange:
            raise UnsupportedError(f"has a value that is not known here of {listed(strange)}")
        return cls(**{known[name]: value for name, value in said.items()})


def _is_known(option: str, value: object) -> bool:
    """Whether an option, as a receipt calls it, may have a value; whether rules for dtypes are sound, they say."""
    if option == "dtype":
        rules = value if isinstance(value, list) else [value]
        return value is None or all(isinstance(rule, str) for rule in rules)
    choices = {"tied": get_args(TiedPolicy), "device": get_args(Device)}
    return value in choices[option] if option in choices else isinstance(value, bool)
