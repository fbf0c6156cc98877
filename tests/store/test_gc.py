"""Garbage collection."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from small_adapters import small_adapter

from lora_registry.errors import ConflictError, NotFoundError
from lora_registry.registry import Registry
from lora_registry.store.gc import collect
from lora_registry.store.store import Store


def test_what_has_a_tag_stays(registry: Registry) -> None:
    """However old it is, and with no grace at all."""
    record = registry.push(small_adapter(1), "a:1")
    for path in Store(registry.root).blobs.files():
        os.utime(path, (0, 0))
    swept = registry.gc(grace=0)
    assert (swept.manifests, swept.blobs, swept.bytes) == ((), (), 0)
    assert registry.resolve("a:1").digest == record.digest


def test_what_lost_its_tag_stays_for_the_grace_period_and_goes_then(registry: Registry) -> None:
    """Until then it can be had by its digest, and tagged again."""
    record = registry.push(small_adapter(1), "a:1")
    registry.remove("a:1")
    by_digest = f"a@{record.digest}"
    assert registry.gc().manifests == ()
    assert registry.resolve(by_digest).digest == record.digest
    dry = registry.gc(grace=0, dry_run=True)
    assert registry.resolve(by_digest).blob in dry.blobs
    swept = registry.gc(grace=0)
    assert swept == dry
    assert swept.manifests == (("a", record.digest),)
    assert len(swept.blobs) == 3
    assert list(Store(registry.root).blobs) == []
    with pytest.raises(NotFoundError):
        registry.resolve(by_digest)
    assert [event.action for event in registry.log()] == ["drop", "untag", "push"]
    assert registry.fsck() == []


def test_what_another_repository_holds_stays(registry: Registry) -> None:
    """One repository lets go of it; the other does not, and the blobs are shared."""
    record = registry.push(small_adapter(1), "a:1")
    registry.tag("a:1", "b:1")
    registry.remove("a:1")
    swept = registry.gc(grace=0)
    assert swept.manifests == (("a", record.digest),)
    assert swept.blobs == ()
    assert registry.load("b:1", verify=True).targets


def test_a_tag_that_moves_lets_go(registry: Registry) -> None:
    """The manifest before counts as released from the move on, unless another tag holds it."""
    registry.push(small_adapter(1), "a:1")
    registry.tag("a:1", "keep")
    registry.push(small_adapter(2), "a:1", move=True)
    assert registry.gc(grace=0).manifests == ()
    registry.remove("a:keep")
    assert len(registry.gc(grace=0).manifests) == 1


def test_orphans_and_leftovers_go_after_the_grace_period(registry: Registry, store: Store) -> None:
    """Blobs of a killed push, and its temporary file, by the time they were last touched."""
    orphan = store.blobs.put([b"orphan"])
    leftover = store.layout.temporary / "123-abc"
    leftover.write_bytes(b"half")
    assert registry.gc().blobs == ()
    for path in (store.blobs.path(orphan), leftover):
        os.utime(path, (time.time() - 25 * 3600,) * 2)
    swept = registry.gc()
    assert (swept.blobs, swept.bytes, swept.leftovers) == ((orphan,), 6, 1)
    assert registry.fsck() == []


def test_nothing_behind_a_link_is_swept(registry: Registry, store: Store, tmp_path: Path) -> None:
    """A registry from elsewhere may have ``tmp`` point to a folder of the user, whose files stay; fsck tells."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "diary").write_text("precious")
    store.layout.temporary.rmdir()
    store.layout.temporary.symlink_to(theirs)
    assert registry.gc(grace=0).leftovers == 0
    assert (theirs / "diary").exists()
    assert [(finding.rule, finding.place) for finding in registry.fsck()] == [("S-005", "tmp")]


def test_a_sweep_waits_for_pushes_and_gives_up(store: Store) -> None:
    """While somebody holds the lock, nothing is collected, whatever the grace."""
    orphan = store.blobs.put([b"of a push under way"])
    store.lock.timeout = 0.05
    with store.lock.shared(), pytest.raises(ConflictError, match="in use"):
        collect(store, "test", grace=0)
    assert store.blobs.verify(orphan)
