"""Which tensors of a merged model an adapter explains: the base's plus a product of factors.

Nothing depends on a recipe being true. Where it is not, what is left to be stored is larger, and
:mod:`~lora_registry.lpatch.write` takes the plain difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.lpatch.places import ModelFiles, Place
from lora_registry.lpatch.product import Product, is_computable
from lora_registry.onnx.model import OnnxModel
from lora_registry.onnx.resolution import Carrier
from lora_registry.onnx.resolve import attempt
from lora_registry.ops.arrays import to_array

_KINDS = frozenset({Kind.LINEAR, Kind.EMBEDDING, Kind.CONV})


@dataclass(frozen=True, slots=True)
class Recipe:
    """A tensor of the merged model out of one of the base.

    Attributes:
        target: name of the target that says so.
        base: initializer of the base.
        merged: initializer of the merged model.
        product: the change, as both store it.
    """

    target: str
    base: str
    merged: str
    product: Product


def recipes(
    targets: Iterable[Target], model: OnnxModel, base: ModelFiles, merged: ModelFiles
) -> tuple[tuple[Recipe, ...], tuple[str, ...]]:
    """The recipes of the targets that have one, and the names of the other targets.

    Args:
        targets: of the adapter that was merged.
        model: the base.
        base: its files.
        merged: those of the merged model.

    Raises:
        InconclusiveError: the names of the targets fit the base in several ways.
    """
    targets = tuple(targets)
    resolutions, _ = attempt(model, targets)
    found = [
        Recipe(resolution.target.name, str(carrier.value.name), name, product)
        for resolution in resolutions
        for carrier in resolution.carriers
        for name, product in _of(resolution.target, carrier, base, merged)
    ]
    # Two recipes of one tensor are two changes of it, and neither of them is the whole.
    once = {recipe.merged: sum(other.merged == recipe.merged for other in found) for recipe in found}
    kept = tuple(recipe for recipe in found if once[recipe.merged] == 1)
    explained = {recipe.target for recipe in kept}
    return kept, tuple(target.name for target in targets if target.name not in explained)


def _of(target: Target, carrier: Carrier, base: ModelFiles, merged: ModelFiles) -> Iterator[tuple[str, Product]]:
    """The initializers of the merged model that may hold W', and the change in their orientation."""
    before = base.places.get(str(carrier.value.name))
    if before is None or target.kind not in _KINDS or set(target.tensors) != {"A", "B"} or target.groups != 1:
        return
    if not is_computable(before.dtype):
        return
    a, b = (to_array(target.tensors[role]) for role in "AB")
    if a.dtype != b.dtype or not is_computable(target.tensors["A"].dtype):
        a, b = a.astype(np.float64), b.astype(np.float64)
    into, out = a.reshape(len(a), -1), b.reshape(len(b), -1).T  # (rank, in…), (rank, out)
    swapped = (target.layout.index("in") < target.layout.index("out")) != carrier.transposed
    product = Product(*((into, out) if swapped else (out, into)), target.scale)
    if product.size != prod(before.shape) or len(into) > min(into.shape[1], out.shape[1]):
        return
    own = str(carrier.value.name)
    for name in dict.fromkeys((own, target.name, f"{target.name}.transposed")):  # what others use is cloned
        if _is_new(merged.places.get(name), before, name in base.places and name != own):
            yield name, product


def _is_new(after: Place | None, before: Place, is_other: bool) -> bool:
    return after is not None and not is_other and (after.dtype, after.shape) == (before.dtype, before.shape)
