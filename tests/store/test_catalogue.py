"""Rows and log tell the same story, whatever was done."""

from __future__ import annotations

from contextlib import suppress
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_adapters import small_adapter

from lora_registry.errors import ConflictError, NotAllowedError, NotFoundError, UsageError
from lora_registry.registry import Registry
from lora_registry.store.fsck import check
from lora_registry.store.store import Store

NAMES = st.sampled_from(["a:1", "a:2", "b:1"])
STEPS = st.one_of(
    st.tuples(st.just("push"), st.integers(1, 3), NAMES, st.booleans()),
    st.tuples(st.just("tag"), NAMES, NAMES, st.booleans()),
    st.tuples(st.just("freeze"), NAMES),
    st.tuples(st.just("remove"), NAMES),
    st.tuples(st.just("gc")),
    st.tuples(st.just("reindex")),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, min_size=3, max_size=12))
def test_whatever_is_done_rows_log_and_blobs_agree(steps: list[tuple[object, ...]]) -> None:
    """Any sequence of operations, refused ones included, leaves a registry that fsck finds nothing in."""
    with TemporaryDirectory() as folder:
        registry = Registry.open(folder)
        registry.push(small_adapter(9), "c:1")
        for step in steps:
            with suppress(ConflictError, NotAllowedError, NotFoundError):
                do(registry, step)
        assert check(Store(registry.root)) == []


def do(registry: Registry, step: tuple[object, ...]) -> None:
    match step:
        case "push", int(seed), str(name), bool(move):
            registry.push(small_adapter(seed), name, move=move)
        case "tag", str(source), str(name), bool(move):
            registry.tag(source, name, move=move)
        case "freeze", str(name):
            registry.tag(name, name, immutable=True)
        case "remove", str(name):
            registry.remove(name)
        case ("gc",):
            registry.gc(grace=0)
        case ("reindex",):
            before = registry.list(), registry.log()
            registry.reindex()
            assert (registry.list(), registry.log()) == before
        case _:
            raise AssertionError(step)


def test_a_tag_that_points_elsewhere_is_left_alone(registry: Registry) -> None:
    """Both digests are named; the blobs of the refused push are not even stored."""
    first = registry.push(small_adapter(1), "a:1")
    count = len(list(Store(registry.root).blobs))
    with pytest.raises(ConflictError, match=str(first.digest)) as caught:
        registry.push(small_adapter(2), "a:1")
    assert str(caught.value).count("sha256:") == 2
    assert registry.resolve("a:1").digest == first.digest
    assert len(list(Store(registry.root).blobs)) == count
    moved = registry.push(small_adapter(2), "a:1", move=True)
    assert moved.digest != first.digest
    assert moved.generation == 2


def test_an_immutable_tag_neither_moves_nor_goes(registry: Registry) -> None:
    """Not by push, not by tag, not by rm, and not after a reindex."""
    registry.push(small_adapter(1), "a:1")
    registry.push(small_adapter(2), "a:2")
    assert registry.tag("a:1", "a:fixed", immutable=True).immutable
    for _ in range(2):
        with pytest.raises(NotAllowedError, match="immutable"):
            registry.push(small_adapter(2), "a:fixed", move=True)
        with pytest.raises(NotAllowedError, match="immutable"):
            registry.tag("a:2", "fixed", move=True)
        with pytest.raises(NotAllowedError, match="immutable"):
            registry.remove("a:fixed")
        assert registry.push(small_adapter(1), "a:fixed").unchanged
        assert registry.resolve("a:fixed").immutable
        registry.reindex()


def test_a_tag_can_be_made_immutable_later(registry: Registry) -> None:
    """The same tag again with ``immutable`` is a change; without it, none."""
    registry.push(small_adapter(1), "a:1")
    assert registry.tag("a:1", "1").unchanged
    frozen = registry.tag("a:1", "1", immutable=True)
    assert frozen.immutable
    assert not frozen.unchanged
    assert registry.tag("a:1", "1", immutable=True).unchanged
    assert registry.tag("a:1", "1").immutable


def test_of_two_who_expect_the_same_one_wins(registry: Registry) -> None:
    """Compare and swap: the second finds another digest than it expected."""
    old = registry.push(small_adapter(1), "a:prod")
    registry.push(small_adapter(2), "a:2")
    registry.push(small_adapter(3), "a:3")
    registry.tag("a:2", "prod", expect=str(old.digest))
    with pytest.raises(ConflictError, match="not to the expected"):
        registry.tag("a:3", "prod", expect=str(old.digest))
    with pytest.raises(ConflictError, match="points to nothing"):
        registry.tag("a:3", "new", expect=str(old.digest))
    with pytest.raises(UsageError, match="not a digest"):
        registry.tag("a:3", "prod", expect="a:2")
    assert registry.resolve("a:prod").digest == registry.resolve("a:2").digest


@pytest.mark.parametrize("actor", ["", "x" * 201, "two\nlines", "\x1b[31mred"])
def test_an_actor_is_a_name(registry: Registry, actor: str) -> None:
    """What would break a line, or a terminal, is not recorded."""
    registry.push(small_adapter(1), "a:1")
    with pytest.raises(UsageError, match="an actor is"), Store(registry.root).writing(actor):
        pass
