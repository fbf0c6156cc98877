"""What a target does (sections 5 and 5.1 to 5.3, and the registered kinds), in JAX: sums over indices.

o, i, r, e are outputs, inputs, ranks and experts; g is a group; q the second rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
from jax import Array

Tensors = Mapping[str, Array]

_sum = partial(jnp.einsum, precision="highest")


def change(record: Mapping[str, Any], tensors: Tensors) -> Array:
    """What is added to W, in the order in which W is stored; float32."""
    scale = float(record["scale"])
    stored = "".join({"out": "o", "in": "i", "expert": "e"}.get(axis, "") for axis in record.get("layout", []))
    match record["kind"]:
        case "bias":
            return jnp.multiply(scale, tensors["delta"])
        case "sparse":
            flat = jnp.zeros(record["shape"]).ravel().at[tensors["index"]].add(scale * tensors["delta"])
            return flat.reshape(record["shape"])
        case "conv":
            a, b, groups = tensors["A"], tensors["B"], record.get("groups", 1)
            grouped = a.reshape(groups, a.shape[0] // groups, *a.shape[1:])
            kernel = _sum("gor,gr...->go...", b.reshape(groups, b.shape[0] // groups, b.shape[1]), grouped)
            return scale * kernel.reshape(b.shape[0], *a.shape[1:])
        case "loha":
            operands = (tensors[role] for role in ("B1", "A1", "B2", "A2"))
            return scale * _sum(f"or,ri...,oq,qi...->{stored}...", *operands)
        case "lokr":
            first, second = _side("1", tensors), _side("2", tensors)
            product = _sum("ac,bd...->abcd...", first, second)
            logical = product.reshape(
                first.shape[0] * second.shape[0], first.shape[1] * second.shape[1], *second.shape[2:]
            )
            return scale * _sum(f"oi...->{stored}...", logical)
        case "experts":
            return scale * _sum(f"eor,eri->{stored}", tensors["B"], tensors["A"])
    return scale * _sum(f"or,ri->{stored}", tensors["B"], tensors["A"])


def _side(number: str, tensors: Tensors) -> Array:
    whole = tensors.get(f"C{number}")
    return whole if whole is not None else _sum("or,ri...->oi...", tensors[f"B{number}"], tensors[f"A{number}"])


def result(record: Mapping[str, Any], tensors: Tensors, weight: Array) -> Array:
    """W' for W = ``weight``, as stored; float32."""
    if record["kind"] == "full":
        return tensors["value"]
    if record["kind"] == "tokens":
        return weight.at[jnp.array(record["rows"])].set(tensors["value"])
    total = jnp.add(tensors.get("value", weight), change(record, tensors))
    if "magnitude" not in tensors:
        return total
    out = record["layout"].index("out")
    last = jnp.moveaxis(total, out, -1)
    norm = jnp.linalg.norm(last.reshape(-1, last.shape[-1]), axis=0)
    return jnp.moveaxis(last * (tensors["magnitude"] / norm), -1, out)
