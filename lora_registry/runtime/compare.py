"""How far two models are apart in one output."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lora_registry.adapter import Json

Floats = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """One output of two models on the same inputs; padding is left out.

    Attributes:
        output: name of the output.
        max_abs: max |got - wanted|.
        max_rel: max |got - wanted| / max |wanted|.
        cosine: of the two outputs as one vector each.
        argmax: fraction of rows whose largest element is the same one; None where rows are no scores.
        effect: max |wanted - base| / max |wanted|: what the adapter changed; None without an adapter.
    """

    output: str
    max_abs: float
    max_rel: float
    cosine: float
    argmax: float | None
    effect: float | None

    def to_json(self) -> dict[str, Json]:
        """The record as a JSON object; a number that is not finite becomes null."""
        return {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in asdict(self).items()
        }

    def __str__(self) -> str:
        parts = [f"{self.output}: max abs {self.max_abs:.2e}", f"rel {self.max_rel:.2e}", f"cosine {self.cosine:.9f}"]
        if self.argmax is not None:
            parts.append(f"argmax {self.argmax:.2%}")
        if self.effect is not None:
            parts.append(f"adapter changes {self.effect:.2e}")
        return ", ".join(parts)


def agreement(output: str, wanted: Floats, got: Floats, base: Floats | None = None) -> Agreement:
    """Compare ``got`` with ``wanted``, both (rows, width); errors are infinite where ``got`` is not finite."""
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    scale = _largest(wanted)
    finite = bool(np.isfinite(got).all())
    max_abs = _largest(got - wanted) if finite else float("inf")
    norms = float(np.linalg.norm(wanted) * np.linalg.norm(got)) if finite else 0.0
    return Agreement(
        output=output,
        max_abs=max_abs,
        max_rel=max_abs / scale,
        cosine=float((wanted * got).sum()) / norms if norms else 0.0,
        argmax=float((wanted.argmax(-1) == got.argmax(-1)).mean()) if output.startswith("logits") else None,
        effect=None if base is None else _largest(wanted - base.astype(np.float64)) / scale,
    )


def _largest(values: Floats) -> float:
    return float(np.abs(values).max())
