"""Which tensors of a merged model an adapter explains: the base's plus a product of factors.

Nothing depends on a recipe being true. Where it is not, what is left to be stored is larger, and
:mod:`~lora_registry.lpatch.write` takes the plain difference.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from lora_registry.adapter import Kind, Target
from lora_registry.lpatch.places import ModelFiles
from lora_registry.lpatch.product import Product, is_computable
from lora_registry.onnx.model import OnnxModel, shape_of
from lora_registry.onnx.resolution import Carrier
from lora_registry.onnx.resolve import attempt
from lora_registry.ops.arrays import to_array

_KINDS = frozenset({Kind.LINEAR, Kind.EMBEDDING, Kind.CONV})


@dataclass(frozen=True, slots=True)
class Recipe:
    """A tensor of the merged model out of one of the base.

    Attributes:
        targets: names of the targets that say so; several where an initializer packs their tensors.
        base: initializer of the base.
        merged: initializer of the merged model.
        product: the change, as both store it.
    """

    targets: tuple[str, ...]
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
    parts: dict[tuple[str, str], list[tuple[str, Product]]] = defaultdict(list)
    for resolution in resolutions:
        for carrier in resolution.carriers:
            product = _product(resolution.target, carrier)
            if product is not None:
                for name in _merged_names(resolution.target, carrier, base, merged):
                    parts[str(carrier.value.name), name].append((resolution.target.name, product))
    found = [
        Recipe(tuple(name for name, _ in each), own, name, product)
        for (own, name), each in parts.items()
        if (product := _sum([product for _, product in each])) is not None
    ]
    explained = {name for recipe in found for name in recipe.targets}
    return tuple(found), tuple(target.name for target in targets if target.name not in explained)


def _product(target: Target, carrier: Carrier) -> Product | None:
    """The change as the whole initializer has it, with zeros outside of the target's part; None where it is none."""
    if target.kind not in _KINDS or set(target.tensors) != {"A", "B"} or target.groups != 1:
        return None
    whole = shape_of(carrier.value)
    a, b = (to_array(target.tensors[role]) for role in "AB")
    if a.dtype != b.dtype or not is_computable(target.tensors["A"].dtype):
        a, b = a.astype(np.float64), b.astype(np.float64)
    into, out = a.reshape(len(a), -1), b.reshape(len(b), -1).T  # (rank, in…), (rank, out)
    swapped = (target.layout.index("in") < target.layout.index("out")) != carrier.transposed
    sides = [into, out] if swapped else [out, into]
    if carrier.window is not None:
        axis = carrier.window.axis
        if len(whole) != 2 or sides[axis].shape[1] != carrier.window.length:
            return None
        side = np.zeros((len(into), whole[axis]), into.dtype)
        side[:, carrier.window.indices()] = sides[axis]
        sides[axis] = side
    product = Product(sides[0], sides[1], target.scale)
    return product if whole and product.size == prod(whole) and product.left.shape[1] == whole[0] else None


def _sum(products: list[Product]) -> Product | None:
    """One product of all ranks; None where they are more than the matrix has."""
    if len({(product.scale, product.left.dtype) for product in products}) > 1:
        products = [
            Product(product.left * np.float64(product.scale), product.right.astype(np.float64), 1.0)
            for product in products
        ]
    left, right = (np.concatenate(sides) for sides in zip(*((each.left, each.right) for each in products), strict=True))
    return Product(left, right, products[0].scale) if len(left) <= min(left.shape[1], right.shape[1]) else None


def _merged_names(target: Target, carrier: Carrier, base: ModelFiles, merged: ModelFiles) -> Iterator[str]:
    """The initializers of the merged model that may hold W': the same, or one that was cloned from it."""
    own = str(carrier.value.name)
    before = base.places.get(own)
    if before is None or not is_computable(before.dtype):
        return
    for name in dict.fromkeys((own, target.name, f"{target.name}.transposed")):
        after = merged.places.get(name)
        is_other = name in base.places and name != own
        if after is not None and not is_other and (after.dtype, after.shape) == (before.dtype, before.shape):
            yield name
