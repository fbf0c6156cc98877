"""Probe certificates beyond those of the merged adapters: long streams, gates, and one change in several forms."""

from __future__ import annotations

from collections.abc import Iterator

import probe
import samples
from container import Tensor, tensor
from draft import Draft, adapter, one
from merge_cases import INF, NAN
from samples import IN_OUT
from vector import Vector, sound

LEFT, RIGHT = [[1, 2], [3, 4], [5, 6]], [[1, 0, 2, 1], [0, 1, 1, 3]]


def flat(rows: list[list[int]], times: float = 1) -> list[float]:
    """The elements of rows, each multiplied."""
    return [value * times for row in rows for value in row]


def pair(left: list[list[int]], right: list[list[int]], times: float = 1) -> dict[str, Tensor]:
    """Factors of these elements, B multiplied."""
    return {
        "A": tensor("F32", (len(right), len(right[0])), flat(right)),
        "B": tensor("F32", (len(left), len(left[0])), flat(left, times)),
    }


def forms() -> Iterator[tuple[str, str, Draft]]:
    """One change of three outputs and four inputs, written in different ways: their numbers are the same."""
    yield "form-plain", "the change that the other forms make too", samples.linear(pair(LEFT, RIGHT), scale=2)
    yield "form-scale-in-b", "the scale in B", samples.linear(pair(LEFT, RIGHT, 2), scale=1)
    padded = pair([[*row, 0] for row in LEFT], [*RIGHT, [9, 9, 9, 9]])
    yield "form-padded", "a rank that does nothing", samples.linear(padded, scale=2)
    swapped = pair([row[::-1] for row in LEFT], RIGHT[::-1])
    yield "form-ranks-swapped", "the ranks in another order", samples.linear(swapped, scale=2)
    turned = samples.linear(pair(LEFT, RIGHT), scale=2, layout=IN_OUT, shape=[4, 3])
    yield "form-in-out", "for a base that is stored transposed", turned
    left, right = [[*row, -1] for row in LEFT], [*RIGHT, [1, 1, 1, 1]]
    undone = pair([[*row, 1] for row in left], [*right, [1, 1, 1, 1]])
    yield "form-initial", "with initial factors that cancel others", samples.linear(undone, scale=2, initial=1)
    dense = {
        "index": list(range(12)),
        "delta": [
            sum(x * y for x, y in zip(row, column, strict=True)) for row in LEFT for column in zip(*RIGHT, strict=True)
        ],
    }
    yield "form-sparse", "every element for itself", samples.requiring(
        one(
            {"index": tensor("I64", (12,), dense["index"]), "delta": tensor("F32", (12,), dense["delta"])},
            kind="sparse", shape=[3, 4], scale=2,
        ),
        "sparse",
    )  # fmt: skip
    stacked = {"A": tensor("F32", (1, 2, 4), flat(RIGHT)), "B": tensor("F32", (1, 3, 2), flat(LEFT))}
    yield "form-experts", "as the one expert", samples.experts(stacked, shape=[1, 3, 4], scale=2)


def drafts() -> Iterator[tuple[str, str, Draft]]:
    """Everything else."""
    for out, inner in ((2, 300), (300, 2), (3, 600)):
        items = samples.factors((1, inner), (out, 1), "F8_E4M3")
        yield (
            f"long-{out}-{inner}",
            "signs out of more than one digest of a stream",
            samples.linear(items, shape=[out, inner]),
        )
    yield "groups", "a grouped convolution: in is the whole input", samples.conv(2, groups=2)
    gated = samples.requiring(samples.linear(), "gate")
    gated.document["gate"] = {"tokens": [3]}
    yield "gate", "a gate changes no number", gated
    yield "scale-zero", "a change of nothing", samples.linear(scale=0)
    yield "scale-smallest", "the smallest scale there is", samples.linear(scale=5e-324)
    yield "scale-large", "a large scale", samples.linear(scale=1e200)
    cancelling = {"A": tensor("F32", (2, 4), [1, 1, 1, 1, -1, -1, -1, -1]), "B": tensor("F32", (3, 2), [1 << 20] * 6)}
    yield "cancelling", "ranks that cancel each other", samples.linear(cancelling)
    values = {
        dtype: ({"kind": "full", "shape": [3]}, {"value": tensor(dtype, (3,))})
        for dtype in ("BOOL", "U64", "I8", "F8_E5M2")
    }
    yield "full-types", "values of several element types", adapter(values)
    yield "full-many-axes", "a value of four axes is a matrix of its first", samples.full(tensor("F32", (2, 1, 3, 2)))
    yield (
        "names",
        "names that hold solidi",
        adapter(
            {
                name: ({"kind": "full", "shape": [1]}, {"value": tensor("F32", (1,))})
                for name in ("a/A", "a", "a/b/value")
            }
        ),
    )
    value = {"value": tensor("F32", (5, 3)), "magnitude": tensor("F64", (3,), [0.1, -0.2, 3e-9])}
    yield "embedding-all", "three components of one target; the value as it is stored", samples.embedding(value)
    value = {"value": tensor("F32", (2, 4, 3))}
    yield (
        "experts-in-out",
        "a value in the axis order of its fingerprint",
        samples.experts(value, layout=["expert", *IN_OUT], shape=[2, 4, 3]),
    )
    yield "sparse-no-axis", "an element of a tensor without axes", samples.sparse((0,), ())


def refusals() -> Iterator[tuple[str, str, Draft]]:
    """Numbers that binary64 does not hold, in whichever order they are computed."""
    for name, value in (("nan", NAN), ("infinity", INF)):
        yield (
            f"refused-{name}",
            "an element that is not finite",
            samples.linear({"A": tensor("F16", (2, 4), [value] * 8)}),
        )
        item = tensor("F32", (3,), [1, value, 1])
        yield f"refused-{name}-delta", "the same of a bias", vector_of(item)
        yield f"refused-{name}-value", "the same of a value", samples.full(item)
        yield f"refused-{name}-magnitude", "the same of a magnitude", samples.linear({"magnitude": item})
    large = {"A": tensor("F64", (1, 1), [1e200]), "B": tensor("F64", (1, 1), [1e200])}
    yield "refused-product", "a product beyond binary64", samples.linear(large, shape=[1, 1], scale=1)
    wide = {"A": tensor("F64", (1, 1), [1e200]), "B": tensor("F64", (1, 1), [1])}
    yield "refused-scale", "a scale that leads beyond binary64", samples.linear(wide, shape=[1, 1], scale=1e200)
    top = 1.7976931348623157e308
    yield "refused-sum", "a sum beyond binary64", samples.full(tensor("F64", (8,), [top] * 8))


def vector_of(item: Tensor) -> Draft:
    """A bias with this change."""
    draft = samples.bias()
    draft.put("w", "delta", item)
    return draft


def vectors() -> Iterator[Vector]:
    """All of them."""
    for table in (forms, drafts, refusals):
        for name, why, draft in table():
            rules = ("P-045", "P-051") if "initial" in draft.document["targets"].get("w", {}) else ("P-051",)
            yield sound(name, why, draft, folder="probe", rules=rules, probe=probe.expectation(draft))
