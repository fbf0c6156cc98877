"""Properties of writing and reading: nothing is lost, equal content has equal bytes, identity is the meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.adapter import LOW_RANK, SCALED, Adapter, Base, Kind, Layout, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.dtypes import DTYPES
from lora_registry.format.identity import content_digest
from lora_registry.format.limits import SAFE_INTEGER
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.target_rules import OPTIONAL
from lora_registry.format.writer import encode_adapter, write_adapter
from lora_registry.segments import Rope, Segment, Segments

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
TARGET_FIELDS = (
    *("kind", "layout", "shape", "scale", "tensors", "fingerprint"),
    *("groups", "rows", "length", "segments", "initial"),
)
DIGESTS = st.binary(min_size=1, max_size=4).map(Digest.of)


def unknown(*known: str) -> st.SearchStrategy[dict[str, Any]]:
    """Fields under names that this version does not know."""
    return st.dictionaries(TEXT.filter(lambda name: name not in known), JSON, max_size=2)


@st.composite
def tensors(draw: st.DrawFn, *shape: int, dtypes: list[str] = FLOATING) -> Tensor:
    """A tensor of arbitrary bytes."""
    dtype = draw(st.sampled_from(dtypes))
    size = prod(shape) * DTYPES[dtype].size
    return Tensor(dtype, shape, draw(st.binary(min_size=size, max_size=size)))


@st.composite
def segments(draw: st.DrawFn, out: int) -> Segments:
    """Segments that fill ``out`` outputs."""
    first = draw(st.integers(0, out))
    lengths = [length for length in (first, out - first) if length]
    parts = tuple(
        Segment(draw(TEXT.filter(bool)) + str(index), length, draw(st.sampled_from([None, *ropes(length)])))
        for index, length in enumerate(lengths)
    )
    return Segments(parts, draw(st.sampled_from([n for n in range(1, out + 1) if all(x % n == 0 for x in lengths)])))


def ropes(length: int) -> list[Rope]:
    """The rotary orders of a segment with one head."""
    return [Rope(length, "halves", length), Rope(length, "pairs", 2)] if length % 2 == 0 else []


@st.composite
def composed(draw: st.DrawFn, kind: Kind) -> tuple[Layout, tuple[int, ...], dict[str, Tensor]]:
    """Layout, shape and tensors of a target whose kind is no part of the core."""
    out, inner, rank, other = (draw(LENGTHS) for _ in range(4))
    if kind is Kind.SPARSE:
        return (), (out, inner), {"index": Tensor("I64", (1,), bytes(8)), "delta": draw(tensors(1))}
    kernel = tuple(draw(st.lists(LENGTHS, max_size=3)))
    layout = ("out", "in", *("k" for _ in kernel))
    second = {"A2": draw(tensors(rank, inner, *kernel)), "B2": draw(tensors(out, rank))}
    if kind is Kind.LOHA:
        first = {"A1": draw(tensors(other, inner, *kernel)), "B1": draw(tensors(out, other))}
        return layout, (out, inner, *kernel), first | second
    if draw(st.booleans()):
        second = {"C2": draw(tensors(out, inner, *kernel))}
    return layout, (out * 2, inner * 3, *kernel), {"C1": draw(tensors(2, 3))} | second


@st.composite
def targets(draw: st.DrawFn, name: str) -> Target:
    """A target of any kind that breaks no rule."""
    kind = draw(st.sampled_from(Kind))
    out, inner, rank, experts = (draw(LENGTHS) for _ in range(4))
    groups = 1
    rows: tuple[int, ...] = ()
    length: int | None = None
    layout: Layout
    shape: tuple[int, ...] | None
    match kind:
        case Kind.LINEAR:
            layout = draw(st.sampled_from([("out", "in"), ("in", "out")]))
            shape = (out, inner) if layout[0] == "out" else (inner, out)
            roles = {"A": draw(tensors(rank, inner)), "B": draw(tensors(out, rank))}
        case Kind.EMBEDDING:
            layout, shape = ("in", "out"), (inner, out)
            roles = {"A": draw(tensors(rank, inner)), "B": draw(tensors(out, rank))}
        case Kind.CONV:
            kernel = tuple(draw(st.lists(LENGTHS, min_size=1, max_size=3)))
            groups = draw(st.integers(1, 2))
            rank, out = rank * groups, out * groups
            layout, shape = ("out", "in", *("k" for _ in kernel)), (out, inner, *kernel)
            roles = {
                "A": draw(tensors(rank, inner * groups, *kernel)),
                "B": draw(tensors(out, rank // groups, *(1 for _ in kernel))),
            }
        case Kind.EXPERTS:
            layout = draw(st.sampled_from([("expert", "out", "in"), ("expert", "in", "out")]))
            shape = (experts, out, inner) if layout[1] == "out" else (experts, inner, out)
            roles = {"A": draw(tensors(experts, rank, inner)), "B": draw(tensors(experts, out, rank))}
        case Kind.BIAS:
            layout, shape = ("out",), (out,)
            roles = {"delta": draw(tensors(out))}
        case Kind.FULL:
            layout, shape = (), tuple(draw(st.lists(LENGTHS, max_size=4)))
            roles = {"value": draw(tensors(*shape, dtypes=sorted(DTYPES)))}
        case Kind.TOKENS:
            rows = tuple(sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=3))))
            layout, shape = ("in", "out"), draw(st.sampled_from([None, (10, out)]))
            if shape is not None and draw(st.booleans()):
                length = 12
                rows = (*(row for row in rows if row < 10), 10, 11)
            roles = {"value": draw(tensors(len(rows), out, dtypes=sorted(DTYPES)))}
        case _:
            layout, shape, roles = draw(composed(kind))
            out = shape[0]
    if "magnitude" in OPTIONAL.get(kind, ()) and draw(st.booleans()):
        roles["magnitude"] = draw(tensors(out))
    if "value" in OPTIONAL.get(kind, ()) and draw(st.booleans()):
        assert shape is not None
        roles["value"] = draw(tensors(*shape))
    fused = kind in {Kind.LINEAR, Kind.EXPERTS, Kind.BIAS, Kind.LOKR, Kind.LOHA} and draw(st.booleans())
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
        segments=draw(segments(out)) if fused else None,
        initial=draw(st.integers(0, rank - 1)) if kind in LOW_RANK else 0,
        fingerprint=draw(st.none() | DIGESTS),
        extra=draw(unknown(*TARGET_FIELDS)),
    )


@st.composite
def adapters(draw: st.DrawFn) -> Adapter:
    """An adapter that breaks no rule, unknown fields included."""
    names = draw(st.sets(NAMES, min_size=1, max_size=4))
    return Adapter(
        targets=tuple(draw(targets(name)) for name in sorted(names)),
        base=Base(
            name=draw(st.none() | TEXT),
            revision=draw(st.none() | TEXT),
            license=draw(st.none() | TEXT),
            view=draw(st.sampled_from([{}, {"scheme": "nf4", "block": 64}])),
            extra=draw(unknown("name", "revision", "license", "view")),
        ),
        info=draw(unknown("title", "license")),
        origin=draw(unknown()),
        requires_write=draw(st.frozensets(st.sampled_from(["a", "b.c", "d-e"]))),
        extensions=draw(st.dictionaries(st.sampled_from(["com.example", "x-1.y"]), st.dictionaries(TEXT, JSON))),
        gate=draw(st.sampled_from([(), (3, 1, 2)])),
        tokenizer=draw(st.sampled_from([{}, {"added": [{"id": 7, "text": "<tool>", "special": True}]}])),
        lineage=draw(st.sampled_from([{}, {"operation": "combine", "parameters": {"weights": [1, 0.5]}}])),
        training=draw(st.sampled_from([{}, {"tool": "x", "datasets": [{"name": "y"}]}])),
        extra=draw(
            unknown(
                *("loreg", "requires", "base", "info", "origin", "extensions", "targets"),
                *("gate", "tokenizer", "lineage", "training"),
            )
        ),
    )


def plain(adapter: Adapter) -> Any:
    """Everything in an adapter as values that compare by content; stated digests are left out."""
    contents = [
        {role: (tensor.dtype, tensor.shape, bytes(tensor.data)) for role, tensor in target.tensors.items()}
        for target in adapter
    ]
    return replace(adapter, targets=tuple(replace(t, tensors={}, digests={}) for t in adapter)), contents


def file_bytes(adapter: Adapter) -> bytes:
    """The native file of an adapter."""
    return b"".join(encode_adapter(adapter).chunks())


@settings(max_examples=150, deadline=None)
@given(adapter=adapters())
def test_reading_undoes_writing(adapter: Adapter, tmp_path_factory: pytest.TempPathFactory) -> None:
    """An adapter of any kinds comes back as it was, unknown fields included; writing it again changes no byte."""
    path = tmp_path_factory.mktemp("roundtrip") / "adapter.loreg.safetensors"
    digest = write_adapter(adapter, path)
    assert check_file(path) == []
    back = read_adapter(path)
    assert plain(back) == plain(adapter)
    assert content_digest(back) == content_digest(adapter)
    assert file_bytes(back) == path.read_bytes()
    assert digest == Digest.of_file(path)


@settings(max_examples=50, deadline=None)
@given(adapter=adapters(), seed=st.integers())
def test_order_of_construction_does_not_matter(adapter: Adapter, seed: int) -> None:
    """Equal adapters give equal bytes, in whatever order their parts were put together."""
    random = Random(seed)

    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(key, shuffled(item)) for key, item in value.items()]
            random.shuffle(items)
            return dict(items)
        return value

    order = list(adapter)
    random.shuffle(order)
    other = replace(
        adapter,
        targets=tuple(
            replace(target, tensors=shuffled(target.tensors), extra=shuffled(target.extra)) for target in order
        ),
        info=shuffled(adapter.info),
        origin=shuffled(adapter.origin),
        extensions=shuffled(adapter.extensions),
        extra=shuffled(adapter.extra),
    )
    assert file_bytes(other) == file_bytes(adapter)


@settings(max_examples=50, deadline=None)
@given(adapter=adapters(), other=adapters())
def test_what_carries_no_meaning_is_outside_of_the_content_digest(adapter: Adapter, other: Adapter) -> None:
    """Base, info, origin, unknown fields, optional extensions and fingerprints do not change the content digest."""
    same = replace(
        adapter,
        base=other.base,
        info=other.info,
        origin=other.origin,
        requires_write=other.requires_write,
        extensions=other.extensions,
        extra=other.extra,
        targets=tuple(
            replace(target, fingerprint=other.targets[0].fingerprint, extra=other.targets[0].extra)
            for target in adapter
        ),
    )
    assert content_digest(same) == content_digest(adapter)


@settings(max_examples=100, deadline=None)
@given(adapter=adapters(), data=st.data())
def test_every_byte_is_inside_of_the_content_digest(adapter: Adapter, data: st.DataObject) -> None:
    """Changing any one byte of any tensor changes the content digest."""
    target = data.draw(st.sampled_from(adapter.targets))
    role = data.draw(st.sampled_from(sorted(target.tensors)))
    tensor = target.tensors[role]
    position = data.draw(st.integers(0, tensor.nbytes - 1))
    changed = bytearray(tensor.data)
    changed[position] ^= data.draw(st.integers(1, 255))
    other = replace(target, tensors={**target.tensors, role: Tensor(tensor.dtype, tensor.shape, bytes(changed))})
    targets = tuple(other if candidate is target else candidate for candidate in adapter)
    assert content_digest(replace(adapter, targets=targets)) != content_digest(adapter)


SQUARE = Target(
    name="w",
    kind=Kind.LINEAR,
    layout=("out", "in"),
    shape=(2, 2),
    tensors={"A": Tensor("F32", (1, 2), bytes(8)), "B": Tensor("F32", (2, 1), bytes(8))},
)
ROWS = Target(
    name="w",
    kind=Kind.TOKENS,
    layout=("in", "out"),
    shape=(4, 1),
    rows=(0, 1),
    tensors={"value": Tensor("F32", (2, 1), bytes(8))},
)
CONV = Target(
    name="w",
    kind=Kind.CONV,
    layout=("out", "in", "k"),
    shape=(2, 1, 1),
    groups=2,
    tensors={"A": Tensor("F32", (2, 2, 1), bytes(16)), "B": Tensor("F32", (2, 1, 1), bytes(8))},
)

MEANINGFUL: dict[str, tuple[Target, Callable[[Target], Target]]] = {
    "the name": (SQUARE, lambda target: replace(target, name="v")),
    "the kind": (replace(SQUARE, layout=("in", "out")), lambda target: replace(target, kind=Kind.EMBEDDING)),
    "the scale": (SQUARE, lambda target: replace(target, scale=1.0000000000000002)),
    "the layout": (SQUARE, lambda target: replace(target, layout=("in", "out"))),
    "the shape": (ROWS, lambda target: replace(target, shape=(5, 1))),
    "the rows": (ROWS, lambda target: replace(target, rows=(0, 2))),
    "the groups": (CONV, lambda target: replace(target, groups=1)),
    "the dtype": (SQUARE, lambda target: retyped(target, "B", "I32", (2, 1))),
    "a tensor's shape": (SQUARE, lambda target: retyped(target, "B", "F32", (1, 2))),
    "the roles": (SQUARE, lambda target: replace(target, tensors={**target.tensors, "value": target.tensors["A"]})),
}  # fmt: skip


def retyped(target: Target, role: str, dtype: str, shape: tuple[int, ...]) -> Target:
    """The same bytes under another dtype or shape."""
    tensor = Tensor(dtype, shape, target.tensors[role].data)
    return replace(target, tensors={**target.tensors, role: tensor})


@pytest.mark.parametrize(("target", "change"), MEANINGFUL.values(), ids=MEANINGFUL)
def test_what_carries_meaning_is_inside_of_the_content_digest(
    target: Target, change: Callable[[Target], Target]
) -> None:
    """Whatever changes what the adapter does changes the content digest."""
    assert content_digest(Adapter(targets=(change(target),))) != content_digest(Adapter(targets=(target,)))


def test_required_extensions_are_part_of_the_meaning() -> None:
    """An extension counts as soon as readers are required to know it."""
    adapter = Adapter(targets=(SQUARE,), extensions={"com.example.gate": {"x": 1}})
    required = replace(adapter, requires_read=frozenset({"com.example.gate"}))
    other = replace(required, extensions={"com.example.gate": {"x": 2}})
    assert len({content_digest(adapter), content_digest(required), content_digest(other)}) == 3


def test_preimage_of_the_content_digest() -> None:
    """The content digest of one small adapter, spelled out as the specification gives it (section 11)."""
    a = SQUARE.digest("A")
    preimage = (
        b"loreg-content-v1\0"
        b'{"extensions":{},"requires":[],"targets":{"w":{"kind":"linear","layout":["out","in"],"scale":1,"shape":[2,2],'
        b'"tensors":{"A":{"digest":"%b","dtype":"F32","shape":[1,2]},"B":{"digest":"%b","dtype":"F32","shape":[2,1]}}}}}'
    ) % (str(a).encode(), str(a).encode())
    assert content_digest(Adapter(targets=(SQUARE,))) == Digest.of(preimage)


def test_reading_a_spelling_that_is_not_canonical(make_file: Callable[..., Path]) -> None:
    """Defaults that are written out, and empty parts, are read; the meaning is that of the canonical file."""
    tensors = {"A": Tensor("F32", (2, 1, 1), bytes(8)), "B": Tensor("F32", (2, 2, 1), bytes(16))}
    canonical = Adapter(targets=(replace(CONV, groups=1, tensors=tensors),))
    encoded = encode_adapter(canonical)
    text = encoded.document.decode()
    text = text.replace('"kind"', '"groups": 1, "kind"').replace('"loreg":1', '"loreg":1, "info": {}')
    path = make_file(None, encoded.tensors, text=text)
    assert check_file(path) == []
    assert content_digest(read_adapter(path)) == content_digest(canonical)
    assert file_bytes(read_adapter(path)) == file_bytes(canonical)
