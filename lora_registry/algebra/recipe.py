"""How adapters are to be combined: the method, its numbers, and which of them mean something for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from lora_registry.adapter import Json
from lora_registry.algebra.election import Convention
from lora_registry.algebra.truncation import Truncation
from lora_registry.dtypes import DTYPES
from lora_registry.errors import UsageError


class Method(StrEnum):
    """What is computed of the changes ΔWᵢ = sᵢ·Bᵢ·Aᵢ and the weights wᵢ.

    ============ ==================================================================================================
    cat          Σ wᵢ·ΔWᵢ exactly, the factors beside each other as they are; the ranks add up (PEFT: ``cat``)
    linear       the same sum at the rank that it has; not PEFT's ``linear``, which adds the Aᵢ and the Bᵢ and so
                 gets products of one adapter's A with another's B
    svd          the same sum, truncated: the best approximation of its rank (PEFT: ``svd``)
    orthogonal   as linear, each adapter without the directions that those before it act on
    ties         signs are elected element by element, and those that disagree are left out
    dare         elements are dropped at random and the others make up for them
    magnitude    Σ wᵢ·ΔWᵢ of the largest elements of each (PEFT: ``magnitude_prune_svd``)
    ============ ==================================================================================================

    The last three act on the elements of the ΔWᵢ, so that their result has full rank and is truncated. Weights are
    taken as they are, as PEFT does; mergekit's ``linear`` divides them by their sum.
    """

    CAT = "cat"
    LINEAR = "linear"
    SVD = "svd"
    ORTHOGONAL = "orthogonal"
    TIES = "ties"
    DARE = "dare"
    MAGNITUDE = "magnitude"


ELEMENTWISE = frozenset({Method.TIES, Method.DARE, Method.MAGNITUDE})
"""The methods that need the whole matrix of each change."""

_TRUNCATES = ELEMENTWISE | {Method.SVD}
_CONVENTIONAL = frozenset({Method.TIES, Method.DARE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A method with its numbers.

    Attributes:
        method: see :class:`Method`.
        truncation: what to keep; needed by svd and the elementwise methods, not for cat.
        density: the share of the elements that stay; needed by the elementwise methods.
        convention: whose rules of ties and dare; see :mod:`~lora_registry.algebra.election`.
        seed: of dare.
        dtype: safetensors name of the element type of the result.
        dense: multiply out LoHa, LoKr and sparse changes.
        force: combine adapters of different bases.

    Raises:
        UsageError: a number is missing, out of range, or means nothing for the method.
    """

    method: Method = Method.LINEAR
    truncation: Truncation = field(default_factory=Truncation)
    density: float | None = None
    convention: Convention | None = None
    seed: int | None = None
    dtype: str = "F32"
    dense: bool = False
    force: bool = False

    def __post_init__(self) -> None:
        method, elementwise = self.method, self.method in ELEMENTWISE
        if method in _TRUNCATES and not self.truncation:
            raise UsageError(f"{method} needs a rank or an energy to keep")
        if method is Method.CAT and self.truncation:
            raise UsageError("cat keeps every rank; svd is the same sum, truncated")
        if elementwise != (self.density is not None):
            raise UsageError(f"{method} {'needs a' if elementwise else 'has no'} density")
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"{self.density:g} is no density: above 0, and 1 at most")
        if self.convention is not None and method not in _CONVENTIONAL:
            raise UsageError(f"{method} is the same in every convention")
        if self.seed is not None and method is not Method.DARE:
            raise UsageError(f"{method} draws nothing at random: it has no seed")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"{self.seed} is no seed: 0 at least")
        check_dtype(self.dtype)

    @property
    def rules(self) -> Convention:
        """The convention, PEFT's where none was chosen."""
        return self.convention or Convention.PEFT

    def to_json(self) -> dict[str, Json]:
        """What has an effect on the numbers, by name; the defaults too, for they may change one day."""
        parameters: dict[str, Json] = {"method": self.method.value, **self.truncation.to_json(), "dtype": self.dtype}
        if self.density is not None:
            parameters["density"] = self.density
        if self.method in _CONVENTIONAL:
            parameters["convention"] = self.rules.value
        if self.method is Method.DARE:
            parameters["seed"] = self.seed or 0
        return parameters


def check_dtype(name: str) -> None:
    """Refuse element types that factors cannot have.

    Raises:
        UsageError: names those that they can.
    """
    if name not in DTYPES or not DTYPES[name].floating:
        known = ", ".join(dtype.name for dtype in DTYPES.values() if dtype.floating)
        raise UsageError(f"{name!r} is no type of factors; there is {known}")
