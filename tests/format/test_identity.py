"""Identity: equal content has equal bytes, and the content digest is that of the meaning, field by field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from adapter_strategies import adapters
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_registry.adapter import Adapter, Kind, Target, Tensor
from lora_registry.digest import Digest
from lora_registry.format.identity import content_digest
from lora_registry.format.reader import check_file, read_adapter
from lora_registry.format.writer import encode_adapter


def file_bytes(adapter: Adapter) -> bytes:
    """The native file of an adapter."""
    return b"".join(encode_adapter(adapter).chunks())


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


SQUARE = Target(
    name="w",
    kind=Kind.LINEAR,
    layout=("out", "in"),
    shape=(2, 2),
    tensors={"A": Tensor("F32", (1, 2), bytes(8)), "B": Tensor("F32", (2, 1), bytes(8))},
)
CONV = Target(
    name="w",
    kind=Kind.CONV,
    layout=("out", "in", "k"),
    shape=(2, 1, 1),
    groups=2,
    tensors={"A": Tensor("F32", (2, 2, 1), bytes(16)), "B": Tensor("F32", (2, 1, 1), bytes(8))},
)


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
