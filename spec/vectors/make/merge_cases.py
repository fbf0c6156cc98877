"""What is merged: every kind, layout and element type, with and without a magnitude; what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import container
import identity
import samples
from container import Tensor, framed, records, tensor
from draft import Draft, adapter, one
from floats import FLOATS, Number
from merging import merging
from samples import IN_OUT
from vector import Vector

NAN, INF = float("nan"), float("inf")


def based(draft: Draft, dtype: str = "F32", values: Sequence[Number] | None = None) -> dict[str, Tensor]:
    """A base tensor for each target, of the shape that the target states."""
    return {
        name: tensor(dtype, target["shape"], values) for name, target in draft.document["targets"].items()
    }  # fmt: skip


def vector_of(delta: Sequence[Number], *, dtype: str = "F32", scale: Number = 1) -> Draft:
    """A bias with these changes."""
    item = tensor(dtype, (len(delta),), delta)
    return one({"delta": item}, kind="bias", layout=["out"], shape=[len(delta)], scale=scale)


def gated(draft: Draft) -> Draft:
    """The same with a gate."""
    samples.requiring(draft, "gate").document["gate"] = {"tokens": [1, 2]}
    return draft


def marked(draft: Draft, base: Mapping[str, Tensor]) -> Draft:
    """A draft that states the fingerprints of this base."""
    result = draft.copy()
    for name, target in result.document["targets"].items():
        target["fingerprint"] = identity.fingerprint(base[name], target)
    return result


def vectors() -> Iterator[Vector]:
    """All of them."""
    yield from _kinds()
    yield from _element_types()
    yield from _scales()
    yield from _magnitudes()
    yield from _several()
    yield from _bases()
    yield from _fingerprints()
    yield from _refused()


def _kinds() -> Iterator[Vector]:
    value = tensor("F32", (3, 4), range(12))
    whole = one({"value": tensor("I64", (2,), [-1, 1 << 62])}, kind="full", shape=[2])
    drafts: dict[str, tuple[str, Draft]] = {
        "linear-out-in": ("W + s · B · A", samples.linear()),
        "linear-in-out": ("the same, stored transposed", samples.linear(layout=IN_OUT, shape=[4, 3])),
        "linear-square-in-out": (
            "a square matrix that is stored transposed, which no shape tells",
            samples.linear({"B": tensor("F32", (4, 2))}, layout=IN_OUT, shape=[4, 4]),
        ),
        "embedding": ("W + s · (B · A) transposed", samples.embedding()),
        **{f"conv-{axes}d": (f"a convolution of {axes} kernel axes", samples.conv(axes)) for axes in (1, 2, 3)},
        "experts-out-in": ("experts, each with factors of its own", samples.experts()),
        "experts-in-out": ("experts stored transposed", samples.experts(layout=["expert", *IN_OUT], shape=[2, 4, 3])),
        "bias": ("b + s · delta", samples.bias(scale=-3)),
        "full": ("the value in place of W", samples.full()),
        "full-integers": ("a value of integers", whole),
        "full-scalar": ("a value of no axis", samples.full(tensor("F32", (), [3]))),
        "tokens": ("two rows replaced, the others as they were", samples.tokens()),
        "tokens-length": ("rows replaced and added", samples.tokens(rows=[0, 5, 6], length=7)),
        "linear-value": ("the value stands in for W", samples.linear({"value": value})),
        "linear-in-out-value": (
            "the same, stored transposed",
            samples.linear({"value": tensor("F16", (4, 3))}, layout=IN_OUT, shape=[4, 3]),
        ),
        "experts-value": ("a value of experts", samples.experts({"value": tensor("BF16", (2, 3, 4))})),
        "conv-value": ("a value of a convolution", samples.conv(1, {"value": tensor("F32", (4, 2, 2))})),
        "embedding-value": ("a value of an embedding", samples.embedding({"value": tensor("F32", (5, 3))})),
        "loha-out-in": ("two products, element by element", samples.loha()),
        "loha-in-out": ("the same, stored transposed", samples.loha(layout=IN_OUT)),
        "loha-conv-2d": ("the same with a kernel", samples.loha((2, 2))),
        "loha-value": ("the value stands in for W", samples.loha(value=value)),
        "lokr-whole": ("a Kronecker product", samples.lokr((True, True))),
        "lokr-products": ("the same of two products", samples.lokr((False, False))),
        "lokr-in-out": ("the same, stored transposed", samples.lokr(layout=IN_OUT)),
        "lokr-conv-1d": ("the same with a kernel", samples.lokr((False, True), (3,))),
        "lokr-conv-2d": ("the same with a kernel of two axes", samples.lokr((True, False), (2, 1))),
        "sparse": ("single elements", samples.sparse()),
        "sparse-three-axes": ("single elements of a tensor of three axes", samples.sparse((0, 7, 23), (2, 3, 4))),
    }
    for name, (why, draft) in drafts.items():
        yield merging(name, why, draft, based(draft, "I64" if name == "full-integers" else "F32"))
    draft = one({"value": tensor("F32", (2, 3))}, kind="tokens", layout=IN_OUT, rows=[0, 3])
    yield merging(
        "tokens-no-shape", "the target does not know how many rows there are", draft, {"w": tensor("F32", (4, 3))}
    )
    draft = samples.linear({"value": value})
    yield merging(
        "linear-value-nan", "a base of NaN gives its name and shape only", draft, based(draft, "F32", [NAN] * 12)
    )
    draft = samples.sparse((1,), (4,))
    yield merging("sparse-untouched", "what is not named keeps its bits", draft, based(draft, "F16", [-0.0, 1, INF, 3]))
    draft = samples.tokens(rows=[1])
    values: list[Number] = [-0.0, INF, 5, *range(3), *range(9)]
    yield merging("tokens-untouched", "other rows keep their bits", draft, based(draft, "BF16", values))


def _element_types() -> Iterator[Vector]:
    for dtype in FLOATS:
        draft = samples.linear()
        yield merging(f"base-{dtype}", f"a base of {dtype}", draft, based(draft, dtype), rules=("P-014", "P-015"))
        draft = samples.linear(samples.factors((2, 4), (3, 2), dtype))
        yield merging(f"factors-{dtype}", f"factors of {dtype}", draft, based(draft, "BF16"))
    draft = samples.linear({"A": tensor("F8_E5M2", (2, 4)), "B": tensor("F64", (3, 2))})
    yield merging("factors-mixed", "A and B of two element types", draft, based(draft, "F16"))
    for kind, draft in {
        "experts": samples.experts(), "conv": samples.conv(2), "loha": samples.loha(), "lokr": samples.lokr(),
        "tokens": samples.tokens("F8_E4M3"), "bias": samples.bias(), "sparse": samples.sparse(),
        "embedding": samples.embedding(),
    }.items():  # fmt: skip
        yield merging(f"{kind}-BF16", f"a base of BF16 of the kind {kind}", draft, based(draft, "BF16"))
    wide = [
        Fraction(1) + Fraction(1, 1 << 8) + Fraction(1, 1 << 40),
        Fraction(1) - Fraction(1, 1 << 9) - Fraction(1, 1 << 50),
    ]
    draft = one({"value": tensor("F64", (2,), wide)}, kind="full", shape=[2])
    yield merging(
        "full-once",
        "rounded to binary32 first, both elements come out wrong",
        draft,
        based(draft, "BF16"),
        rules=("P-015",),
    )
    yield merging("full-F64", "a value of F64 in a base of F64", draft, based(draft, "F64"))
    draft = samples.linear(samples.factors((2, 4), (3, 2), "F64"), scale=0.1)
    yield merging(
        "base-F64-scale", "a base of F64 is not computed in binary32", draft, based(draft, "F64"), rules=("P-014",)
    )


def _scales() -> Iterator[Vector]:
    scales: dict[str, tuple[Any, str]] = {
        "negative": (-0.75, "a scale below zero"),
        "zero": (0, "a scale of zero changes nothing"),
        "minus-zero": (-0.0, "nor does a negative zero"),
        "third": (1 / 3, "a scale that is not exact in binary32"),
        "root": (2**0.5, "a scale that follows from a root of the rank"),
        "tiny": (1e-300, "a scale below everything that binary32 holds"),
        "smallest": (5e-324, "the smallest scale there is"),
    }
    for name, (scale, why) in scales.items():
        draft = samples.linear(scale=scale)
        yield merging(f"scale-{name}", why, draft, based(draft))
    draft = samples.linear(scale=1e39)
    yield merging(
        "scale-beyond", "a scale beyond everything that binary32 holds", draft, based(draft), rules=("P-016",)
    )
    items = samples.factors((2, 4), (3, 2), "F64")
    draft = samples.linear(items, scale=1e39)
    yield merging("scale-beyond-F64", "the same scale is fine for a base of F64", draft, based(draft, "F64"))


def _magnitudes() -> Iterator[Vector]:
    sides = {"A": tensor("F32", (1, 4), [1, 1, 1, 1]), "B": tensor("F32", (3, 1), [1, 0, -2])}
    exact = {**sides, "magnitude": tensor("F32", (3,), [6, -2, 3])}
    weight: list[Number] = [0, 0, 0, 0, 3, 3, 3, 3, 4, 4, 4, 4]
    draft = samples.linear(exact, scale=1)
    yield merging(
        "magnitude-exact", "norms that are powers of two, a magnitude below zero", draft, based(draft, "F32", weight)
    )
    turned = [weight[4 * (index % 3) + index // 3] for index in range(12)]
    draft = samples.linear(exact, scale=1, layout=IN_OUT, shape=[4, 3])
    yield merging("magnitude-in-out-exact", "the same, stored transposed", draft, based(draft, "BF16", turned))
    draft = samples.linear({**sides, "magnitude": tensor("F32", (3,), [0, 1, 1])}, scale=1)
    yield merging("magnitude-zero", "a magnitude of zero", draft, based(draft, "F32", [1, *weight[1:]]))
    ranged = tensor("F32", (3, 4), range(12))
    m3, m4 = {"magnitude": tensor("F32", (3,))}, {"magnitude": tensor("F32", (4,))}
    drafts: dict[str, tuple[str, Draft]] = {
        "linear": ("the norm is over the inputs", samples.linear(m3, scale=0.25)),
        "linear-in-out": ("the same, stored transposed", samples.linear(m3, layout=IN_OUT, shape=[4, 3], scale=0.25)),
        "embedding": ("the norm is over the vocabulary", samples.embedding(m3)),
        "conv-1d": ("the norm is over inputs and kernel", samples.conv(1, m4)),
        "conv-2d": ("the same with two kernel axes", samples.conv(2, m4)),
        "conv-3d": ("the same with three", samples.conv(3, m4)),
        "value": ("the norm is that of the value with its change", samples.linear(m3 | {"value": ranged})),
        "loha": ("a magnitude of two products", samples.loha(magnitude=tensor("F32", (3,)))),
        "loha-in-out": ("the same, stored transposed", samples.loha(layout=IN_OUT, magnitude=tensor("F32", (3,)))),
        "loha-conv": ("the same with a kernel", samples.loha((2,), magnitude=tensor("F32", (3,)))),
        "lokr": ("a magnitude of a Kronecker product", samples.lokr(magnitude=tensor("F32", (6,)))),
        "lokr-in-out": ("the same, stored transposed", samples.lokr(layout=IN_OUT, magnitude=tensor("F32", (6,)))),
        "lokr-conv": ("the same with a kernel", samples.lokr((True, True), (2,), magnitude=tensor("F32", (6,)))),
    }  # fmt: skip
    for name, (why, item) in drafts.items():
        yield merging(f"magnitude-{name}", why, item, based(item))
    for dtype in ("F64", "F16", "BF16", "F8_E4M3", "F8_E5M2"):
        draft = samples.linear({"magnitude": tensor("BF16", (3,))}, scale=0.25)
        yield merging(f"magnitude-{dtype}", f"a magnitude in a base of {dtype}", draft, based(draft, dtype))
    draft = samples.linear({"A": tensor("F32", (2, 4), [0] * 8), **m3})
    base = based(draft, "F32", [0] * 4 + [1] * 8)
    yield merging("magnitude-no-norm", "an output whose norm is zero", draft, base, rules=("P-016",))


def _several() -> Iterator[Vector]:
    draft = adapter(
        {
            "a.weight": (
                {"kind": "linear", "layout": ["out", "in"], "shape": [2, 2], "scale": 1},
                samples.factors((1, 2), (2, 1)),
            ),
            "a.bias": ({"kind": "bias", "layout": ["out"], "shape": [2], "scale": 0.5}, {"delta": tensor("F16", (2,))}),
            "b/c.weight": ({"kind": "full", "shape": [3]}, {"value": tensor("F32", (3,))}),
        }
    )  # fmt: skip
    base = {**based(draft), "a.bias": tensor("BF16", (2,)), "untouched": tensor("I8", (2,), [1, 2])}
    yield merging("several", "three targets, and a tensor that none of them changes", draft, base)


def _bases() -> Iterator[Vector]:
    """Bases of other programs: the rules for native files do not apply to them, those of the container do."""
    draft = samples.bias()
    base = {
        "caf\u00e9 \u4e16": tensor("U8", (1,)), "w": tensor("F16", (3,)), "empty": Tensor("F32", (0, 1 << 40), b""),
        "e": tensor("F64", (2,)),
    }  # fmt: skip
    order = ["caf\u00e9 \u4e16", "empty", "e", "w"]
    header = {"__metadata__": {"format": "pt", "": ""}} | records(base, order)
    data = b"".join(base[key].data for key in order)
    spelled = framed(json.dumps(header, indent=1).encode(), data)
    yield merging("base-foreign", "any order and names, metadata, an empty tensor", draft, base, data=spelled)
    plain = {"w": tensor("F32", (3,))}
    head, hole = records(plain, ["w"]), {"w": container.record("F32", [3], [4, 16])}
    unknown = {"x": container.record("F6", [0], [12, 12])}
    for name, why, broken in (
        ("truncated", "the base lacks its last byte", framed(head, plain["w"].data[:-1])),
        ("hole", "bytes of the base belong to no tensor", framed(hole, bytes(16))),
        ("type", "an element type that nobody knows", framed(head | unknown, plain["w"].data)),
    ):  # fmt: skip
        yield merging(f"refused-base-{name}", why, draft, plain, code="invalid-input", data=broken)
    truncated = framed(head, plain["w"].data[:-1])
    for name, draft in {"gate": gated(samples.bias()), "groups": samples.conv(1, groups=2)}.items():
        why = "the adapter is judged before the base, which is broken"
        rules = ("P-046",) if name == "gate" else ("P-006",)
        yield merging(f"refused-{name}-first", why, draft, plain, rules=rules, code="unsupported", data=truncated)
    draft = gated(samples.linear())
    yield merging(
        "refused-gate-missing",
        "nor is the base asked for the tensor",
        draft,
        plain,
        rules=("P-046",),
        code="unsupported",
    )


def _fingerprints() -> Iterator[Vector]:
    plain = samples.linear()
    base = based(plain)
    draft = marked(plain, base)
    yield merging("fingerprint-same", "the base that the adapter was made for", draft, base, rules=("P-010",))
    yield merging(
        "fingerprint-BF16", "a copy of it in another element type", draft, based(plain, "BF16"), rules=("P-010",)
    )
    yield merging("fingerprint-F64", "a copy in F64 is another base", draft, based(plain, "F64"), rules=("P-011",))
    other = {"w": tensor("F32", (3, 4), range(12))}
    yield merging("fingerprint-other", "another base is no reason to refuse", draft, other, rules=("P-011",))
    turned = samples.linear(layout=IN_OUT, shape=[4, 3], fingerprint=draft.target("w")["fingerprint"])
    copy = {"w": tensor("F32", (4, 3), identity.transposed(base["w"].values, 3, 4))}
    yield merging("fingerprint-in-out", "a copy that is stored transposed has the same", turned, copy, rules=("P-010",))
    stacked = samples.experts(layout=["expert", *IN_OUT], shape=[2, 4, 3])
    yield merging("fingerprint-experts", "each expert is transposed", marked(stacked, based(stacked)), based(stacked))
    for name, item in {"embedding": samples.embedding(), "conv": samples.conv(2), "tokens": samples.tokens()}.items():
        yield merging(
            f"fingerprint-{name}", "in the order in which it is stored", marked(item, based(item)), based(item)
        )
    turned = samples.loha(layout=IN_OUT)
    yield merging("fingerprint-loha", "transposed as for linear", marked(turned, based(turned)), based(turned))
    whole = one({"value": tensor("I8", (2,), [1, -1])}, kind="full", shape=[2])
    numbers = based(whole, "I8", [5, -5])
    yield merging("fingerprint-I8", "integers under the name of their type", marked(whole, numbers), numbers)
    pair = adapter({name: ({"kind": "full", "shape": [2]}, {"value": tensor("F32", (2,))}) for name in "abc"})
    several = based(pair)
    stated = marked(pair, several)
    del stated.target("c")["fingerprint"]
    several["b"] = tensor("F32", (2,), [0, 0])
    yield merging("fingerprint-each", "same, other and none in one adapter", stated, several, rules=("P-010", "P-011"))


def _refused() -> Iterator[Vector]:
    draft = gated(samples.linear())
    yield merging("refused-gate", "an adapter with a gate", draft, based(draft), rules=("P-046",), code="unsupported")
    draft = samples.conv(1, groups=2)
    yield merging("refused-groups", "a grouped convolution", draft, based(draft), rules=("P-006",), code="unsupported")
    for name, why, draft, base in (
        ("missing", "the base has no tensor of the name", samples.linear(), {"v": tensor("F32", (7,))}),
        ("missing-full", "nor for a value, unless the user allows it", samples.full(), {"v": tensor("F32", (7,))}),
        ("shape", "the base tensor has another shape", samples.linear(), {"w": tensor("F32", (3, 5))}),
        ("transposed", "the base tensor is stored the other way round", samples.linear(), {"w": tensor("F32", (4, 3))}),
        ("axes", "the base tensor has an axis more", samples.bias(), {"w": tensor("F32", (3, 1))}),
        ("full-shape", "a value of another shape", samples.full(), {"w": tensor("F32", (2, 2))}),
        ("value-shape", "a value stands in for W, and W has another shape",
         samples.linear({"value": tensor("F32", (3, 4))}), {"w": tensor("F32", (4, 4))}),
        ("tokens-grown", "the vocabulary has grown already",
         samples.tokens(rows=[5], length=6), {"w": tensor("F32", (6, 3))}),
        ("tokens-row", "a row that the base does not have",
         one({"value": tensor("F32", (1, 3))}, kind="tokens", layout=IN_OUT, rows=[5]), {"w": tensor("F32", (5, 3))}),
        ("tokens-width", "rows of another width",
         one({"value": tensor("F32", (1, 3))}, kind="tokens", layout=IN_OUT, rows=[0]), {"w": tensor("F32", (5, 4))}),
        ("loha-shape", "of a registered kind", samples.loha(), {"w": tensor("F32", (4, 3))}),
        ("lokr-shape", "of a registered kind", samples.lokr(), {"w": tensor("F32", (6, 5))}),
        ("sparse-shape", "of a registered kind", samples.sparse(), {"w": tensor("F32", (4, 3))}),
    ):  # fmt: skip
        yield merging(f"refused-{name}", why, draft, base, rules=("P-012",), code="invalid-input")
