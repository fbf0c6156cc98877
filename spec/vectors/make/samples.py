"""Small sound targets of every kind, to be taken as they are or to be broken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from container import Tensor, tensor
from draft import Draft, one

OUT_IN, IN_OUT = ["out", "in"], ["in", "out"]
DIGEST = "sha256:" + "0" * 64
"""A digest in the right form, of nothing that is known."""


def factors(a: Iterable[int], b: Iterable[int], dtype: str = "F32", dtype_b: str | None = None) -> dict[str, Tensor]:
    """Factors of these shapes."""
    return {"A": tensor(dtype, a), "B": tensor(dtype_b or dtype, b)}


def linear(tensors: Mapping[str, Tensor] | None = None, **fields: Any) -> Draft:
    """A linear target of 3 outputs and 4 inputs, rank 2."""
    record = {"kind": "linear", "layout": OUT_IN, "shape": [3, 4], "scale": 2, **fields}
    return one({**factors((2, 4), (3, 2)), **(tensors or {})}, **record)


def embedding(tensors: Mapping[str, Tensor] | None = None, **fields: Any) -> Draft:
    """An embedding of 5 tokens and width 3, rank 2."""
    record = {"kind": "embedding", "layout": IN_OUT, "shape": [5, 3], "scale": 0.5, **fields}
    return one({**factors((2, 5), (3, 2)), **(tensors or {})}, **record)


def conv(axes: int = 2, tensors: Mapping[str, Tensor] | None = None, groups: int | None = None, **fields: Any) -> Draft:
    """A convolution of 4 outputs, 2 inputs a group, rank 2, and kernels of length 2."""
    kernel = (2,) * axes
    layout = ["out", "in", *("k" for _ in kernel)]
    record = {"kind": "conv", "layout": layout, "shape": [4, 2, *kernel], "scale": 1, **fields}
    if groups is not None:
        record["groups"] = groups
    many = groups or 1
    sized = factors((2, 2 * many, *kernel), (4, 2 // many, *(1 for _ in kernel)))
    return one({**sized, **(tensors or {})}, **record)


def experts(tensors: Mapping[str, Tensor] | None = None, **fields: Any) -> Draft:
    """Two experts of 3 outputs and 4 inputs, rank 2."""
    record = {"kind": "experts", "layout": ["expert", "out", "in"], "shape": [2, 3, 4], "scale": 1, **fields}
    return one({**factors((2, 2, 4), (2, 3, 2)), **(tensors or {})}, **record)


def bias(dtype: str = "F32", **fields: Any) -> Draft:
    """A bias of three outputs."""
    record = {"kind": "bias", "layout": ["out"], "shape": [3], "scale": 1, **fields}
    return one({"delta": tensor(dtype, (3,))}, **record)


def full(item: Tensor | None = None, **fields: Any) -> Draft:
    """A tensor of its own."""
    value = tensor("F32", (4,)) if item is None else item
    return one({"value": value}, **{"kind": "full", "shape": list(value.shape), **fields})


def tokens(dtype: str = "F32", **fields: Any) -> Draft:
    """Two of five rows of an embedding of width 3."""
    record = {"kind": "tokens", "layout": IN_OUT, "shape": [5, 3], "rows": [1, 4], **fields}
    return one({"value": tensor(dtype, (len(record["rows"]), 3))}, **record)


def requiring(draft: Draft, *features: str) -> Draft:
    """The same with features to read."""
    draft.document["requires"] = {"read": sorted(features)}
    return draft


def loha(kernel: tuple[int, ...] = (), layout: list[str] | None = None, **tensors: Tensor) -> Draft:
    """A product of products, 3 outputs and 4 inputs, ranks 2 and 1."""
    layout = layout or ["out", "in", *("k" for _ in kernel)]
    shape = [4, 3] if layout == IN_OUT else [3, 4, *kernel]
    own = {
        "A1": tensor("F32", (2, 4, *kernel)),
        "B1": tensor("F32", (3, 2)),
        "A2": tensor("F32", (1, 4, *kernel)),
        "B2": tensor("F32", (3, 1)),
    }
    return requiring(one({**own, **tensors}, kind="loha", layout=layout, shape=shape, scale=0.5), "loha")


def lokr(
    whole: tuple[bool, bool] = (True, False),
    kernel: tuple[int, ...] = (),
    layout: list[str] | None = None,
    **tensors: Tensor,
) -> Draft:
    """A Kronecker product of (2, 3) and (3, 2): 6 outputs, 6 inputs.

    Args:
        whole: which of the two sides is given whole.
        kernel: lengths of the kernel's axes.
        layout: of the base tensor.
        tensors: others, or other ones.
    """
    layout = layout or ["out", "in", *("k" for _ in kernel)]
    first = {"C1": (2, 3)} if whole[0] else {"A1": (2, 3), "B1": (2, 2)}
    second = {"C2": (3, 2, *kernel)} if whole[1] else {"A2": (1, 2, *kernel), "B2": (3, 1)}
    own = {role: tensor("F32", shape) for role, shape in {**first, **second}.items()}
    return requiring(one({**own, **tensors}, kind="lokr", layout=layout, shape=[6, 6, *kernel], scale=1), "lokr")


def sparse(index: Iterable[int] = (0, 5, 11), shape: Iterable[int] = (3, 4), dtype: str = "F32") -> Draft:
    """Single elements of a tensor."""
    positions = list(index)
    own = {"index": tensor("I64", (len(positions),), positions), "delta": tensor(dtype, (len(positions),))}
    return requiring(one(own, kind="sparse", shape=list(shape), scale=2), "sparse")
