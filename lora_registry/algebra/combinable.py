"""What can be added up, and what is refused by name: not everything that an adapter does is a linear change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lora_registry.adapter import LOW_RANK, Adapter, Kind, Target
from lora_registry.algebra.lowering import DENSE, lowered
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.ops.rows import reordered

_LOGICAL = ("out", "in", "expert")


def check_linear(adapters: Iterable[Adapter], *, dense: bool) -> None:
    """Refuse adapters that cannot be added up.

    Args:
        adapters: any.
        dense: whether changes without two factors may be multiplied out; see :mod:`~lora_registry.algebra.lowering`.

    Raises:
        UnsupportedError: a gate (activated LoRA); a magnitude (DoRA); or a LoHa, LoKr or sparse change, and ``dense``
            is false.
    """
    for adapter in adapters:
        if adapter.gate:
            raise UnsupportedError(
                f"an adapter is switched on by tokens {list(adapter.gate)} (activated LoRA): its change is not there "
                "before them, and no sum has such a gate"
            )
        for target in adapter:
            refuse_magnitude(target)
            if target.kind in DENSE and not dense:
                raise UnsupportedError(
                    f"{target.name}: a {target.kind} change has no two factors to compute with; ask for dense, which "
                    "multiplies it out"
                )


def refuse_magnitude(target: Target) -> None:
    """Refuse a DoRA target: m ∘ (W + ΔW) / ‖W + ΔW‖ is not linear in ΔW, and depends on W.

    Raises:
        UnsupportedError: it has a magnitude.
    """
    if "magnitude" in target.tensors:
        raise UnsupportedError(f"{target.name}: has a magnitude (DoRA), which is not linear in the change")


def replaces(target: Target) -> bool:
    """Whether the target sets values instead of adding to them."""
    return "value" in target.tensors


def aligned(group: Sequence[Target]) -> list[Target]:
    """Targets of one base tensor, each as a low-rank or bias target with its outputs in the order of the first's.

    Args:
        group: targets of one name that :func:`check_linear` has nothing against, and that replace nothing.

    Raises:
        UnsupportedError: a sparse change of a tensor that is no matrix.
        InvalidInputError: the targets differ in kind, shape, groups, or segments that do not fit each other.
    """
    layout = next((target.layout for target in group if target.layout), ("out", "in"))
    like: Target | None = None
    result = []
    for target in group:
        plain = lowered(target, layout)
        assert plain.kind in LOW_RANK or plain.kind is Kind.BIAS, plain.kind
        like = like or plain
        for what, own, other in (
            ("kind", plain.kind, like.kind),
            ("shape", _logical_shape(plain), _logical_shape(like)),
            ("groups", plain.groups, like.groups),
        ):
            if own != other:
                raise InvalidInputError(f"{plain.name}: the adapters differ in its {what}: {other} and {own}")
        if plain.segments is not None and like.segments is not None:
            plain = reordered(plain, like.segments)
        result.append(plain)
    return result


def _logical_shape(target: Target) -> tuple[int, ...]:
    """The lengths by axis, outputs first, whichever way the base stores them."""
    assert target.shape is not None  # only tokens may leave it out
    lengths = dict(zip(target.layout, target.shape, strict=True))
    kernel = target.shape[2:] if target.kind is Kind.CONV else ()
    return (*(lengths[axis] for axis in _LOGICAL if axis in lengths), *kernel)
