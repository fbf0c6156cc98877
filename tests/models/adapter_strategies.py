"""Hypothesis strategies for adapters that break no rule: every kind, layout, role and element type, unknown fields too.

The bytes of every tensor are arbitrary, except where a rule speaks about them. With ``LOREG_TEST_EFFORT=50`` in the
environment a run draws fifty times as many examples and other ones each time; without it a run is deterministic.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from dataclasses import fields
from math import prod
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from lora_registry.adapter import LAYOUTS, LOW_RANK, SCALED, Adapter, Base, Kind, Layout, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.format.features import FEATURES, content_features
from lora_registry.format.limits import SAFE_INTEGER
from lora_registry.format.target_rules import OPTIONAL, SEGMENTED
from lora_registry.segments import Rope, Segment, Segments

T = TypeVar("T")

FORMS: list[tuple[Kind, Layout]] = [(kind, layout) for kind in Kind for layout in sorted(LAYOUTS[kind])]
"""Every kind with every layout of it."""

EFFORT = int(os.environ.get("LOREG_TEST_EFFORT", "1"))
FLOATING = sorted(name for name, dtype in DTYPES.items() if dtype.floating)
NAMES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=20)
LENGTHS = st.integers(1, 4)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
FLOATS = st.floats(allow_nan=False, allow_infinity=False).filter(lambda value: not SAFE_INTEGER < abs(value) < 1e21)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-SAFE_INTEGER, SAFE_INTEGER) | FLOATS | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DIGESTS = st.binary(min_size=1, max_size=4).map(Digest.of)
EXTENSIONS = st.dictionaries(
    st.sampled_from(["com.example", "x-1.y"]), st.dictionaries(TEXT, JSON, max_size=2), max_size=2
)


def effort(examples: int) -> settings:
    """Settings for a test of ``examples`` examples, multiplied and random where the environment asks for more."""
    return settings(
        max_examples=examples * EFFORT,
        derandomize=EFFORT == 1,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


def unknown(*known: str) -> st.SearchStrategy[dict[str, Any]]:
    """Fields under names that this version does not know."""
    return st.dictionaries(TEXT.filter(lambda name: name not in known), JSON, max_size=2)


def known(*records: type) -> list[str]:
    """The names of the fields of dataclasses, which are also those of the document."""
    return [field.name for record in records for field in fields(record)]


@st.composite
def tensors(draw: st.DrawFn, *shape: int, dtypes: list[str] = FLOATING) -> Tensor:
    """A tensor of arbitrary bytes."""
    dtype = draw(st.sampled_from(dtypes))
    size = prod(shape) * DTYPES[dtype].size
    return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


def positions(numbers: Iterable[int]) -> Tensor:
    """The ascending positions of a sparse change."""
    ordered = sorted(numbers)
    return Tensor("I64", (len(ordered),), struct.pack(f"<{len(ordered)}q", *ordered))


@st.composite
def segments(draw: st.DrawFn, out: int) -> Segments:
    """Segments that fill ``out`` outputs."""
    first = draw(st.integers(0, out))
    lengths = [length for length in (first, out - first) if length]
    parts = tuple(
        Segment(draw(TEXT.filter(bool)) + str(index), length, draw(st.sampled_from([None, *ropes(length)])))
        for index, length in enumerate(lengths)
    )
    blocks = [number for number in range(1, out + 1) if all(length % number == 0 for length in lengths)]
    return Segments(parts, draw(st.sampled_from(blocks)))


def ropes(length: int) -> list[Rope]:
    """The rotary orders of a segment with one head."""
    return [Rope(length, "halves", length), Rope(length, "pairs", 2)] if length % 2 == 0 else []


@st.composite
def factors(draw: st.DrawFn, number: str, out: int, inner: int, kernel: tuple[int, ...]) -> dict[str, Tensor]:
    """A and B number 1 or 2 of a composed kind."""
    rank = draw(LENGTHS)
    return {f"A{number}": draw(tensors(rank, inner, *kernel)), f"B{number}": draw(tensors(out, rank))}


@st.composite
def kronecker(draw: st.DrawFn, number: str, out: int, inner: int, kernel: tuple[int, ...]) -> dict[str, Tensor]:
    """One side of a Kronecker product, whole or as factors."""
    if draw(st.booleans()):
        return draw(factors(number, out, inner, kernel))
    return {f"C{number}": draw(tensors(out, inner, *kernel))}


@st.composite
def targets(draw: st.DrawFn, name: str, form: tuple[Kind, Layout] | None = None) -> Target:
    """A target that breaks no rule, of any kind and layout or of those that are given."""
    kind, layout = form or draw(st.sampled_from(FORMS))
    out, inner, rank, experts = (draw(LENGTHS) for _ in range(4))
    groups, length, rows = 1, None, ()
    everything = sorted(DTYPES)
    kernel = tuple(draw(LENGTHS) for axis in layout if axis == "k")
    match kind:
        case Kind.LINEAR | Kind.EMBEDDING:
            roles = {"A": draw(tensors(rank, inner)), "B": draw(tensors(out, rank))}
        case Kind.CONV:
            groups = draw(st.integers(1, 2))
            rank, out = rank * groups, out * groups
            roles = {
                "A": draw(tensors(rank, inner * groups, *kernel)),
                "B": draw(tensors(out, rank // groups, *(1 for _ in kernel))),
            }
        case Kind.EXPERTS:
            roles = {"A": draw(tensors(experts, rank, inner)), "B": draw(tensors(experts, out, rank))}
        case Kind.BIAS:
            roles = {"delta": draw(tensors(out))}
        case Kind.LOHA:
            roles = draw(factors("1", out, inner, kernel)) | draw(factors("2", out, inner, kernel))
        case Kind.LOKR:
            roles = draw(kronecker("1", 2, 3, ())) | draw(kronecker("2", out, inner, kernel))
            out, inner = 2 * out, 3 * inner
        case Kind.FULL | Kind.SPARSE | Kind.TOKENS:
            roles = {}
    axes = {"out": out, "in": inner, "expert": experts}
    spatial = iter(kernel)
    shape: tuple[int, ...] | None = tuple(next(spatial) if axis == "k" else axes[axis] for axis in layout)
    match kind:
        case Kind.FULL:
            shape = tuple(draw(st.lists(LENGTHS, max_size=4)))
            roles = {"value": draw(tensors(*shape, dtypes=everything))}
        case Kind.SPARSE:
            shape = tuple(draw(st.lists(LENGTHS, max_size=3)))
            places = draw(st.sets(st.integers(0, prod(shape) - 1), min_size=1, max_size=4))
            roles = {"index": positions(places), "delta": draw(tensors(len(places)))}
        case Kind.TOKENS:
            rows = tuple(sorted(draw(st.sets(st.integers(0, 9), max_size=3))))
            shape = draw(st.sampled_from([None, (10, out)])) if rows else (10, out)
            if not rows or (shape is not None and draw(st.booleans())):
                length = 12
                rows += (10, 11)
            roles = {"value": draw(tensors(len(rows), out, dtypes=everything))}
    if "magnitude" in OPTIONAL.get(kind, ()) and draw(st.booleans()):
        roles["magnitude"] = draw(tensors(out))
    if "value" in OPTIONAL.get(kind, ()) and draw(st.booleans()):
        assert shape is not None
        roles["value"] = draw(tensors(*shape))
    return Target(
        name=name,
        kind=kind,
        layout=layout,
        shape=shape,
        tensors=roles,
        scale=draw(FLOATS) if kind in SCALED else 1.0,
        groups=groups,
        rows=rows,
        length=length,
        segments=draw(st.none() | segments(out)) if kind in SEGMENTED else None,
        initial=draw(st.integers(0, rank - 1)) if kind in LOW_RANK else 0,
        fingerprint=draw(st.none() | DIGESTS),
        extra=draw(unknown(*known(Target))),
    )


TOKENIZERS = st.fixed_dictionaries(
    {},
    optional={
        "digest": DIGESTS.map(str),
        "chat_template": DIGESTS.map(str),
        "added": st.lists(st.fixed_dictionaries({"id": st.integers(0, 9), "text": TEXT}), max_size=2),
    },
)
LINEAGES = st.just({}) | st.fixed_dictionaries(
    {
        "operation": TEXT,
        "parents": st.lists(
            st.fixed_dictionaries({"content": DIGESTS.map(str)}, optional={"name": TEXT}), min_size=1, max_size=2
        ),
    },
    optional={"parameters": st.dictionaries(TEXT, JSON, max_size=2)},
)
TRAININGS = st.fixed_dictionaries(
    {},
    optional={
        "tool": TEXT,
        "version": TEXT,
        "datasets": st.lists(st.fixed_dictionaries({"name": TEXT}, optional={"revision": TEXT}), max_size=2),
    },
)
LICENSES = st.sampled_from(["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "MIT OR (BSD-3-Clause AND ISC)"])
VIEWS = st.just({}) | st.fixed_dictionaries(
    {"scheme": st.sampled_from(["nf4", "int8", "gptq"])}, optional={"block": st.just(64)}
)
INFOS = st.fixed_dictionaries(
    {},
    optional={
        "title": TEXT,
        "description": TEXT,
        "license": LICENSES,
        "authors": st.lists(TEXT, max_size=2),
        "tags": st.lists(TEXT, max_size=2),
    },
)


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    """An adapter that breaks no rule, unknown fields included; what its content needs is not named once more."""
    names = draw(st.sets(NAMES, min_size=1, max_size=3))
    changed = tuple(draw(targets(name)) for name in sorted(names))
    gate = tuple(draw(st.lists(st.integers(0, 9), max_size=3, unique=True)))
    features = draw(st.frozensets(st.sampled_from(sorted(FEATURES)), max_size=2))
    return Adapter(
        targets=changed,
        base=Base(
            name=draw(st.none() | TEXT),
            revision=draw(st.none() | TEXT),
            license=draw(st.none() | LICENSES),
            view=draw(VIEWS),
            extra=draw(unknown(*known(Base))),
        ),
        info=draw(INFOS) | draw(unknown("title", "description", "license", "authors", "tags")),
        origin=draw(st.dictionaries(st.sampled_from(["config", "later"]), JSON, max_size=2)),
        gate=gate,
        tokenizer=draw(TOKENIZERS),
        lineage=draw(LINEAGES),
        training=draw(TRAININGS),
        requires_read=features - content_features(changed, gate),
        requires_write=draw(st.frozensets(st.sampled_from(["a", "b.c", "d-e"]), max_size=2)),
        extensions=draw(EXTENSIONS),
        extra=draw(unknown("loreg", "requires", *known(Adapter))),
    )


def samples(count: int, strategy: st.SearchStrategy[T]) -> list[T]:
    """Always the same ``count`` values of a strategy, for those who cannot ask for one at a time."""
    found: list[T] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(value: T) -> None:
        found.append(value)

    collect()
    return found[:count]
