"""Every rule of fsck finds what it is there for, and nothing else."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from forged_manifests import LIES, forge
from small_adapters import small_adapter

from lora_registry.errors import IntegrityError, NotFoundError
from lora_registry.registry import Registry
from lora_registry.store.fsck import RULES
from lora_registry.store.journal import Journal, JournalContent
from lora_registry.store.store import Store

SPEC = Path(__file__).parents[2] / "spec" / "registry.md"


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def sql(statement: str) -> Callable[[Store, Path], object]:
    def spoil(store: Store, _blob: Path) -> None:
        with closing(sqlite3.connect(store.layout.database)) as connection:
            connection.execute(statement)
            connection.commit()

    return spoil


def edit_journal(edit: Callable[[list[bytes]], object]) -> Callable[[Store, Path], object]:
    def spoil(store: Store, _blob: Path) -> None:
        lines = store.journal.path.read_bytes().splitlines(keepends=True)
        edit(lines)
        store.journal.path.write_bytes(b"".join(lines))

    return spoil


def lying(**lies: object) -> Callable[[Store, Path], object]:
    return lambda store, _blob: forge(store, "a:1", **lies)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    overwrite(path, bytes(data))


CASES: dict[str, tuple[Callable[[Store, Path], object], set[str]]] = {
    "a flipped bit": (lambda _store, blob: flip(blob), {"S-001"}),
    "a truncated blob": (lambda _store, blob: overwrite(blob, blob.read_bytes()[:-1]), {"S-002", "S-015"}),
    "a missing blob": (lambda _store, blob: blob.unlink(), {"S-003"}),
    "an orphan": (lambda store, _blob: store.blobs.put([b"orphan"]), {"S-004"}),
    "a foreign file": (lambda store, _blob: (store.layout.root / "notes.txt").touch(), {"S-005"}),
    "a foreign file among blobs": (lambda store, _blob: (store.layout.blobs / "x").touch(), {"S-005"}),
    "a left-over": (lambda store, _blob: (store.layout.temporary / "1-x").touch(), {"S-006"}),
    "a writable blob": (lambda _store, blob: blob.chmod(0o644), {"S-007"}),
    "an edited row": (sql("UPDATE manifests SET summary = replace(summary, 'MIT', 'GPL')"), {"S-008"}),
    "a broken seal": (sql("UPDATE manifests SET seal = ''"), {"S-008"}),
    "a lost database": (lambda store, _blob: store.layout.database.unlink(), {"S-009"}),
    "a damaged database": (lambda store, _blob: store.layout.database.write_bytes(b"x" * 9000), {"S-009"}),
    "a garbled row": (sql("UPDATE manifests SET summary = '{}'"), {"S-009"}),
    "a garbled tag": (sql("UPDATE tags SET manifest = 'latest' WHERE name = '1'"), {"S-009"}),
    "a moved tag": (sql("UPDATE tags SET generation = 7 WHERE name = '1'"), {"S-010"}),
    "a holding without a log": (sql("UPDATE holdings SET released = 'yesterday'"), {"S-010"}),
    "an edited event": (sql("UPDATE events SET actor = 'nobody' WHERE sequence = 1"), {"S-011"}),
    "a deleted event": (sql("DELETE FROM events WHERE sequence = 1"), {"S-011"}),
    "an event that is no text": (sql("UPDATE events SET after = CAST(x'ff' AS TEXT) WHERE sequence = 1"), {"S-009"}),
    "an edited journal": (edit_journal(lambda lines: lines.__setitem__(0, b"{}\n")), {"S-012", "S-013"}),
    "a shortened journal": (edit_journal(lambda lines: lines.pop()), {"S-013"}),
    "a torn journal": (edit_journal(lambda lines: lines.append(b'{"half')), {"S-014"}),
    **{f"another {what} in a manifest": (lying(**lie), {"S-015"}) for what, lie in LIES.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_fsck_finds(registry: Registry, case: str) -> None:
    """One thing is spoiled, and the rules that are broken by it are named."""
    registry.push(small_adapter(1), "a:1")
    registry.push(small_adapter(2), "a:2")
    registry.push(small_adapter(3), "b:1")
    assert registry.fsck() == []
    spoil, expected = CASES[case]
    spoil(Store(registry.root), registry.path("a:1"))
    findings = registry.fsck()
    assert {finding.rule for finding in findings} == expected, findings


def test_a_catalogue_that_is_no_text_is_made_again(registry: Registry) -> None:
    """Bytes that SQLite lets pass as text are damage like any other, which a reindex mends."""
    registry.push(small_adapter(1), "a:1")
    sql("UPDATE events SET after = CAST(x'ff' AS TEXT)")(Store(registry.root), registry.root)
    with pytest.raises(IntegrityError, match="loreg reindex"):
        registry.log()
    registry.reindex()
    assert registry.fsck() == []


def test_pushes_meanwhile_are_not_taken_for_an_old_database(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is committed between the look at the database and the look at the journal is nothing to report."""
    registry.push(small_adapter(1), "a:1")
    read = Journal.read

    def read_late(journal: Journal) -> JournalContent:
        monkeypatch.undo()
        registry.push(small_adapter(2), "a:2")
        registry.push(small_adapter(3), "a:3")
        return read(journal)

    monkeypatch.setattr(Journal, "read", read_late)
    assert {finding.rule for finding in registry.fsck()} == {"S-004"}  # blobs that the rows did not know yet


def test_every_rule_is_tried_above() -> None:
    """No rule without a case that breaks it."""
    assert set().union(*(expected for _, expected in CASES.values())) == set(RULES)


def test_the_specification_has_the_same_rules() -> None:
    """``spec/registry.md`` lists the same ids, each with the same sentence."""
    table = dict(re.findall(r"^\| (S-\d{3}) \| \w+ \| (.+)\. \|$", SPEC.read_text("utf-8"), re.MULTILINE))
    assert table == {rule: text[0].upper() + text[1:] for rule, text in RULES.items()}


def test_a_folder_without_a_registry_is_not_sound_but_not_found(tmp_path: Path) -> None:
    """Nothing to check is not the same as nothing wrong."""
    with pytest.raises(NotFoundError, match="no registry"):
        Registry.open(tmp_path).fsck()
