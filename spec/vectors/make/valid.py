"""Sound files: every kind, layout, element type and field."""

from __future__ import annotations

from collections.abc import Iterator

import samples
from container import tensor
from draft import Draft
from floats import FLOATS, INTEGERS
from vector import Vector, sound


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from _kinds()
    yield from _element_types()


def _kinds() -> Iterator[Vector]:
    m3, m4 = {"magnitude": tensor("F32", (3,))}, {"magnitude": tensor("F32", (4,))}
    cases: dict[str, tuple[str, Draft]] = {
        "linear-out-in": ("the smallest adapter: one linear target", samples.linear()),
        "linear-in-out": ("a base that stores it transposed", samples.linear(layout=samples.IN_OUT, shape=[4, 3])),
        "linear-magnitude": ("a magnitude beside factors", samples.linear(m3)),
        "linear-value": ("a value in place of W", samples.linear({"value": tensor("F32", (3, 4))})),
        "linear-magnitude-value": (
            "magnitude and value, each in its element type",
            samples.linear({"magnitude": tensor("F64", (3,)), "value": tensor("BF16", (3, 4))}),
        ),
        "embedding": ("an embedding: in is the vocabulary", samples.embedding()),
        "embedding-magnitude": ("a magnitude of an embedding has its width", samples.embedding(m3)),
        "embedding-value": ("a value of an embedding", samples.embedding({"value": tensor("F16", (5, 3))})),
        **{f"conv-{axes}d": (f"a convolution of {axes} kernel axes", samples.conv(axes)) for axes in (1, 2, 3)},
        "conv-magnitude": ("a magnitude of a convolution", samples.conv(2, m4)),
        "conv-value": ("a value of a convolution", samples.conv(1, {"value": tensor("F32", (4, 2, 2))})),
        "conv-groups": ("a grouped convolution: A reaches all inputs, B is grouped", samples.conv(2, groups=2)),
        "experts-out-in": ("experts stacked along the first axis", samples.experts()),
        "experts-in-out": (
            "experts whose matrices are stored transposed",
            samples.experts(layout=["expert", "in", "out"], shape=[2, 4, 3]),
        ),
        "experts-value": ("a value of experts", samples.experts({"value": tensor("BF16", (2, 3, 4))})),
        "bias": ("a change of a vector", samples.bias()),
        "full": ("a tensor that is replaced", samples.full()),
        "full-scalar": ("a tensor of no axis", samples.full(tensor("F32", ()))),
        "full-eight-axes": ("as many axes as a tensor has at most", samples.full(tensor("U8", (2, *(1,) * 7)))),
        "tokens": ("rows that are replaced", samples.tokens()),
        "tokens-length": ("a vocabulary that grows", samples.tokens(rows=[0, 5, 6], length=7)),
        "loha": ("a product of two products", samples.loha()),
        "loha-in-out": ("the same, stored transposed", samples.loha(layout=["in", "out"])),
        "loha-conv-2d": ("the same with kernel axes", samples.loha((2, 2))),
        "loha-magnitude-value": (
            "the same with a magnitude and a value",
            samples.loha(magnitude=tensor("F32", (3,)), value=tensor("F32", (3, 4))),
        ),
        "lokr-whole": ("a Kronecker product of whole matrices", samples.lokr((True, True))),
        "lokr-first-whole": ("the second matrix is a product", samples.lokr((True, False))),
        "lokr-second-whole": ("the first matrix is a product", samples.lokr((False, True))),
        "lokr-products": ("both matrices are products", samples.lokr((False, False))),
        "lokr-in-out": ("a Kronecker product, stored transposed", samples.lokr(layout=["in", "out"])),
        "lokr-conv-1d": ("a Kronecker product with a kernel axis", samples.lokr((False, False), (2,))),
        "sparse": ("single elements", samples.sparse()),
        "sparse-three-axes": ("positions count the elements of any shape", samples.sparse((0, 23), (2, 3, 4))),
    }  # fmt: skip
    for name, (why, draft) in cases.items():
        yield sound(name, why, draft)


def _element_types() -> Iterator[Vector]:
    for dtype in FLOATS:
        draft = samples.linear(samples.factors((2, 4), (3, 2), dtype))
        yield sound(f"factors-{dtype}", f"factors of {dtype}", draft)
    for dtype in INTEGERS:
        yield sound(f"full-{dtype}", f"a value of {dtype}", samples.full(tensor(dtype, (2,))))
    mixed = {"A": tensor("F8_E4M3", (2, 4)), "B": tensor("F64", (3, 2)), "magnitude": tensor("F8_E5M2", (3,))}
    yield sound("factors-mixed", "factors and magnitude of three element types", samples.linear(mixed))
    yield sound("tokens-F8_E5M2", "rows of F8_E5M2", samples.tokens("F8_E5M2"))
    yield sound("bias-BF16", "a change of a vector in BF16", samples.bias("BF16"))
    yield sound("sparse-F16", "changes of single elements in F16", samples.sparse(dtype="F16"))
