"""What a target does (sections 5 and 5.1 to 5.3, and the registered kinds), in numpy: loops and matrix products."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Tensors = Mapping[str, Array]


def change(record: Mapping[str, Any], tensors: Tensors) -> Array:
    """What is added to W, in the order in which W is stored; float32."""
    scale = float(record["scale"])
    match record["kind"]:
        case "bias":
            return np.multiply(scale, tensors["delta"])
        case "sparse":
            sparse = np.zeros(record["shape"], np.float32)
            sparse.flat[tensors["index"]] = scale * tensors["delta"]
            return sparse
        case "conv":
            return _convolution(tensors["A"], scale * tensors["B"], record.get("groups", 1))
        case "loha":
            logical: Array = scale * _product("1", tensors) * _product("2", tensors)
        case "lokr":
            first, second = _product("1", tensors), _product("2", tensors)
            logical = scale * np.kron(first.reshape(*first.shape, *(1,) * (second.ndim - 2)), second)
        case _:
            logical = tensors["B"] @ tensors["A"] * scale
    order = record["layout"]
    return logical if order.index("out") < order.index("in") else logical.swapaxes(-1, -2)


def _convolution(a: Array, b: Array, groups: int) -> Array:
    """The dense kernel, output by output: each reads the ranks of its group."""
    ranks, outputs = b.shape[1], b.shape[0] // groups
    kernel = np.zeros((b.shape[0], *a.shape[1:]), np.float32)
    for out in range(b.shape[0]):
        first = out // outputs * ranks
        for rank in range(ranks):
            kernel[out] += b[out, rank].item() * a[first + rank]
    return kernel


def _product(number: str, tensors: Tensors) -> Array:
    """B·A of one side, or its C."""
    if f"C{number}" in tensors:
        return tensors[f"C{number}"]
    return np.tensordot(tensors[f"B{number}"], tensors[f"A{number}"], axes=1)


def result(record: Mapping[str, Any], tensors: Tensors, weight: Array) -> Array:
    """W' for W = ``weight``, as stored; float32."""
    if record["kind"] == "full":
        return tensors["value"]
    if record["kind"] == "tokens":
        replaced = weight.copy()
        replaced[record["rows"]] = tensors["value"]
        return replaced
    total = np.add(tensors.get("value", weight), change(record, tensors))
    if "magnitude" in tensors:
        out = record["layout"].index("out")
        others = tuple(axis for axis in range(total.ndim) if axis != out)
        total /= np.sqrt(np.square(total).sum(axis=others, keepdims=True))
        total *= np.expand_dims(tensors["magnitude"], others)
    return total
