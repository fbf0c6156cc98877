"""Events, their chain, and the journal that keeps a second copy of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_registry.digest import Digest
from lora_registry.errors import IntegrityError
from lora_registry.store.events import Action, Event, chain_problem
from lora_registry.store.journal import Journal


def chain(count: int, *, per_transaction: int = 1) -> list[Event]:
    """A log of pushes to one tag."""
    events: list[Event] = []
    for sequence in range(1, count + 1):
        before = events[-1] if events else None
        events.append(
            Event(
                sequence=sequence,
                transaction=sequence - (sequence - 1) % per_transaction,
                time="2026-11-23T00:00:00.000000Z",
                actor="Zoë",
                action=Action.PUSH,
                repository="a/b",
                tag="1",
                before=before.after if before else None,
                after=Digest.of(str(sequence).encode()),
                immutable=False,
                previous=before.hash if before else None,
            )
        )
    return events


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def test_an_event_reads_back_as_itself() -> None:
    """Through JSON text, hash included."""
    for event in chain(2):
        assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event


@given(st.sampled_from(sorted(chain(2)[1].to_json())), st.sampled_from(["x", 7, True, None, 1.5, [], "sha256:00"]))
def test_an_event_that_was_changed_is_noticed(name: str, value: object) -> None:
    """Whichever field somebody changes, and to whatever, the event is refused."""
    document = dict(chain(2)[1].to_json())
    if document[name] == value and type(document[name]) is type(value):
        return
    with pytest.raises(ValueError):  # noqa: PT011 - from_json promises no more
        Event.from_json({**document, name: value})  # type: ignore[dict-item]


def test_a_chain_that_lacks_or_swaps_events_is_noticed() -> None:
    """Removed at the begin or in the middle, swapped, or forged: the first wrong place is named."""
    events = chain(4)
    assert chain_problem(events) is None
    assert chain_problem([]) is None
    assert "event 2 stands where event 1" in str(chain_problem(events[1:]))
    assert "event 3 stands where event 2" in str(chain_problem([events[0], *events[2:]]))
    forged = replace(events[1], actor="somebody else")
    assert "event 3 does not carry" in str(chain_problem([events[0], forged, *events[2:]]))


def test_a_journal_says_what_was_appended(journal: Journal) -> None:
    """In order, over several appends."""
    assert journal.is_empty()
    assert journal.read().events == ()
    events = chain(5)
    journal.append(events[:2])
    journal.append([])
    journal.append(events[2:])
    content = journal.read()
    assert (content.events, content.problem, content.torn) == (tuple(events), None, 0)


@pytest.mark.parametrize("count", [1, 3, 700])
def test_a_transaction_that_was_not_committed_is_taken_back(journal: Journal, count: int) -> None:
    """Lines after the database's last event go, with what is torn after them; the rest stays."""
    events = chain(8)
    journal.append(events)
    size = journal.path.stat().st_size
    ahead = []
    for event in chain(8 + count)[8:]:
        previous = (ahead or events)[-1].hash
        ahead.append(replace(event, transaction=9, previous=previous))
    journal.append(ahead)
    with journal.path.open("ab") as stream:
        stream.write(b'{"torn')
    assert journal.read().torn == 6
    journal.reconcile(events[-1])
    assert journal.path.stat().st_size == size
    journal.reconcile(events[-1])
    assert journal.read().events == tuple(events)


def test_the_first_transaction_of_all_is_taken_back_too(journal: Journal) -> None:
    """The database is empty and the journal is not: the very first commit did not happen."""
    journal.append(chain(1))
    journal.reconcile(None)
    assert journal.is_empty()


def test_a_torn_first_line_is_taken_back(journal: Journal) -> None:
    """Zeros, as a power cut leaves them, are no events."""
    events = chain(1)
    journal.append(events)
    with journal.path.open("ab") as stream:
        stream.write(bytes(300))
    journal.reconcile(events[0])
    assert journal.read().events == tuple(events)


def test_a_journal_of_another_story_is_refused_and_left_alone(journal: Journal) -> None:
    """Two transactions ahead, behind, another event of the same number, or empty: nothing is cut."""
    events = chain(5)
    journal.append(events)
    before = journal.path.read_bytes()
    other = replace(events[-1], actor="somebody else")
    behind = replace(events[-1], sequence=6, previous=events[-1].hash)
    for head, reason in (
        (events[2], "ahead of the database by 2"),
        (other, "another event 5"),
        (behind, "lacks event 6"),
    ):
        with pytest.raises(IntegrityError, match=reason):
            journal.reconcile(head)
    with pytest.raises(IntegrityError, match="ahead of the database by 5"):
        journal.reconcile(None)
    assert journal.path.read_bytes() == before
    journal.path.unlink()
    with pytest.raises(IntegrityError, match="is empty"):
        journal.reconcile(events[-1])


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (b'"actor"', b'"Actor"', "line 2: an event has the fields"),
        (b"Zo", b"Xo", "line 2: event 2 was changed"),
        (b'{"action"', b'{ "action"', "line 2: not spelled canonically"),
        (b'"sequence":2', b'"sequence":2,"sequence":2', "line 2: not an event"),
    ],
)
def test_reading_stops_at_the_first_bad_line(journal: Journal, old: bytes, new: bytes, problem: str) -> None:
    """The line is named, and what is before it is kept."""
    events = chain(3)
    journal.append(events)
    lines = journal.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(old, new)
    journal.path.write_bytes(b"".join(lines))
    content = journal.read()
    assert content.events == (events[0],)
    assert str(content.problem).startswith(problem)


def test_a_journal_with_a_line_missing_is_broken(journal: Journal) -> None:
    """Each line is sound, and the chain is not."""
    events = chain(3)
    journal.rewrite([events[0], events[2]])
    assert journal.read().problem == "line 2: event 3 follows event 1"
