"""A catalogue whose bytes were overwritten is refused, or reads as it did; it never reads as another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from small_adapters import small_adapter

from lora_registry.errors import IntegrityError, LoregError, NotFoundError
from lora_registry.registry import Registry
from lora_registry.store.store import Store

PAGE = 4096  # bytes; what SQLite takes unless it is told otherwise


@pytest.fixture
def filled(registry: Registry) -> Registry:
    """Two repositories, a shared and a moved tag, and one that is gone."""
    for seed in range(5):
        registry.push(small_adapter(seed), f"a:{seed}")
    registry.tag("a:0", "b:0")
    registry.push(small_adapter(5), "a:1", move=True)
    registry.remove("a:2")
    return registry


def pages_swapped(data: bytes, _random: Random) -> Iterator[bytes]:
    """Every two pages, one in the place of the other."""
    for first, second in combinations(range(0, len(data), PAGE), 2):
        one, two = data[first : first + PAGE], data[second : second + PAGE]
        yield data[:first] + two + data[first + PAGE : second] + one + data[second + PAGE :]


def pages_lost(data: bytes, random: Random) -> Iterator[bytes]:
    """Every page, zeros or noise in its place; and every page the first that is not there."""
    for begin in range(0, len(data), PAGE):
        for page in (bytes(PAGE), random.randbytes(PAGE)):
            yield data[:begin] + page + data[begin + PAGE :]
        yield data[:begin]


def pieces_overwritten(data: bytes, random: Random) -> Iterator[bytes]:
    """A few bytes anywhere, with zeros, with noise, or with one bit flipped."""
    for _ in range(200):
        length = random.choice((1, 2, 16, 100))
        begin = random.randrange(len(data) - length)
        flipped = bytes([data[begin] ^ 1 << random.randrange(8)]) + data[begin + 1 : begin + length]
        piece = random.choice((bytes(length), random.randbytes(length), flipped))
        yield data[:begin] + piece + data[begin + length :]


def header_changed(data: bytes, _random: Random) -> Iterator[bytes]:
    """Every byte of SQLite's header, inverted, and with its last bit flipped."""
    for at in range(100):
        for mask in (0xFF, 1):
            yield data[:at] + bytes([data[at] ^ mask]) + data[at + 1 :]


@pytest.mark.parametrize("damage", [pages_swapped, pages_lost, pieces_overwritten, header_changed])
def test_a_damaged_catalogue_never_reads_as_another_one(
    filled: Registry, damage: Callable[[bytes, Random], Iterator[bytes]]
) -> None:
    """Lists, logs and single adapters are right or an error that names the command that mends; both happen."""
    database = Store(filled.root).layout.database
    uses: tuple[Callable[[], object], ...] = (
        filled.list,
        filled.log,
        lambda: filled.resolve("a:1").digest,
        lambda: filled.resolve("b:0").blob,
    )
    right = [use() for use in uses]
    seen = {"right": 0, "refused": 0}
    for data in damage(database.read_bytes(), Random(20261124)):
        _put(database, data)
        for use, expected in zip(uses, right, strict=True):
            try:
                assert use() == expected
                seen["right"] += 1
            except IntegrityError:
                seen["refused"] += 1
    assert min(seen.values()) > 20, seen


def test_nothing_is_swept_by_a_damaged_catalogue(filled: Registry) -> None:
    """Garbage collection deletes no blob that was needed before the damage, whatever pages are swapped."""
    filled.gc(grace=0)
    store = Store(filled.root)
    data, journal, blobs = store.layout.database.read_bytes(), store.journal.path.read_bytes(), [*store.blobs]
    refused = 0
    for damaged in pages_swapped(data, Random(0)):
        _put(store.layout.database, damaged)
        try:
            filled.gc(grace=0)
        except IntegrityError:
            refused += 1
        assert [*store.blobs] == blobs
        assert store.journal.path.read_bytes() == journal
    assert refused > 20


def test_what_is_damaged_is_not_called_missing(filled: Registry) -> None:
    """A tag that cannot be found is looked for in the log before it is said that there is none; a reindex mends."""
    store = Store(filled.root)
    listed = filled.list()
    with store.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM tags")
    for use in (lambda: filled.resolve("a:1"), filled.list, lambda: filled.gc(grace=0)):
        with pytest.raises(IntegrityError, match="mend it with `loreg reindex`"):
            use()
    filled.reindex()
    assert filled.list() == listed
    with pytest.raises(NotFoundError):
        filled.resolve("a:none")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE manifests SET summary = replace(summary, 'number', 'Number')",
        "UPDATE manifests SET size = size + 1",
        "UPDATE manifests SET seal = ''",
        "UPDATE tags SET name = '7' WHERE name = '3'",
        "UPDATE tags SET immutable = 1",
        "UPDATE holdings SET created = '2000-01-01T00:00:00.000000Z'",
        "DELETE FROM manifests",
        "DELETE FROM events WHERE sequence = 1",
        "DROP TABLE tags",
    ],
)
def test_rows_that_are_not_sealed_are_not_shown(filled: Registry, statement: str) -> None:
    """What SQLite finds sound can say something else than what was stored, and is refused all the same."""
    with Store(filled.root).database.writing() as connection:
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = ON")
        connection.exec_driver_sql("DELETE FROM tags" if statement == "DELETE FROM manifests" else "SELECT 1")
        connection.exec_driver_sql("DELETE FROM holdings" if statement == "DELETE FROM manifests" else "SELECT 1")
        connection.exec_driver_sql(statement)
    with pytest.raises(LoregError) as caught:
        filled.list()
    assert type(caught.value) is IntegrityError
    assert filled.fsck() != []


def _put(database: Path, data: bytes) -> None:
    """Make ``data`` the database, without what SQLite had beside the one before."""
    for suffix in ("-journal", "-wal", "-shm"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    database.write_bytes(data)
