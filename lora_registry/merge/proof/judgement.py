"""What can be said of one tensor of a merged checkpoint, and why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from lora_registry.adapter import Json
from lora_registry.ops.fidelity import Fidelity


class Answer(StrEnum):
    """What can be said of a claim."""

    HOLDS = "holds"
    DOES_NOT = "does not"
    UNDECIDED = "cannot be decided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What was found about one tensor.

    Attributes:
        name: of the tensor.
        targets: names of the targets that change it; none for one that is to be as it was.
        answer: whether it holds.
        says: why, in a sentence.
        dtype: its element type.
        rows: rows that were looked at.
        of: rows there are.
        largest: units in the last place between an element and the correctly rounded one, at most. The unit is that
            of the larger of W and W': where they cancel, no arithmetic knows the digits of what is left.
        off: part of the elements that are not the correctly rounded one; of a weight that was quantized again, not
            those of the scheme's own encoding.
        fidelity: what is left of the change in a weight that was quantized again; None otherwise.
    """

    name: str
    targets: tuple[str, ...]
    answer: Answer
    says: str
    dtype: str
    rows: int
    of: int
    largest: float = 0.0
    off: float = 0.0
    fidelity: Fidelity | None = None

    def but(self, answer: Answer, says: str) -> Judgement:
        """The same with another answer."""
        return replace(self, answer=answer, says=says)

    def to_json(self) -> dict[str, Json]:
        """The judgement as a JSON object."""
        left: dict[str, Json] = {} if self.fidelity is None else {"fidelity": dict(self.fidelity.to_json())}
        return left | {
            "name": self.name,
            "targets": list(self.targets),
            "answer": self.answer.value,
            "says": self.says,
            "dtype": self.dtype,
            "rows": self.rows,
            "of": self.of,
            "largest_units": float(f"{self.largest:.6g}") if np.isfinite(self.largest) else None,
            "off_fraction": float(f"{self.off:.6g}"),
        }
