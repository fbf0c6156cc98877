"""The view that an adapter was trained on (``base.view``) against the scheme of the base that it meets (P-049)."""

from __future__ import annotations

from collections.abc import Mapping

from lora_registry.adapter import Json
from lora_registry.quantized.weight import Scheme

_ALIASES = {"compressed-tensors": frozenset({"compressed-tensors", "fp8"})}
"""One kind of quantization by more than one name."""


def agrees(view: Mapping[str, Json] | None, scheme: Scheme) -> bool:
    """Whether an adapter was trained on a base in this scheme; members that only one of the two has are no matter."""
    if not view or view.get("scheme") not in _ALIASES.get(scheme.name, frozenset({scheme.name})):
        return False
    return all(view[key] == value for key, value in scheme.parameters.items() if key in view)


def said_of(view: Mapping[str, Json] | None, scheme: Scheme) -> str:
    """In one sentence, what the view of the adapter has to do with the scheme of the base."""
    if agrees(view, scheme):
        return f"the adapter was trained on a base in {scheme}, as this one is"
    if not view:
        return (
            f"the base is quantized, {scheme}, and nothing says that the adapter was trained on it so: the change may "
            "have been made for the unquantized weights, and fit them better"
        )
    trained = ", ".join(str(value) if key == "scheme" else f"{key} {value}" for key, value in view.items())
    return f"the adapter was trained on a base in {trained}, and this one is in {scheme}: other weights than its own"
