"""The rules of ``spec/registry.md``: their ids, who shows them, and the style of the text.

A G rule of a section that is implemented is shown by a test in ``test_spec_*.py`` beside this file, whose
docstring begins with its id, or by one that ``ELSEWHERE`` names. What the text calls a contract is checked for
what can be checked without it: that its examples are complete and follow from each other.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from registry_spec import FENCE, RULE, TEXT, prose, sections, table

from lora_registry.store import fsck

TESTS = Path(__file__).parents[1]
BESIDE = "".join(path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_spec_*.py")))
KEYWORD = re.compile(r"\b(MUST|SHOULD|MAY)\b")

ELSEWHERE = {
    "G-001": ["store/test_database.py::test_a_folder_that_is_no_registry_is_left_alone"],
    "G-003": ["store/test_reindex.py::test_a_lost_database_says_which_command_helps"],
    "G-006": ["store/test_manifest.py::test_equal_adapters_have_equal_manifests_wherever_they_are_pushed"],
    "G-007": [
        "store/test_manifest.py::test_anything_else_is_refused",
        "store/test_manifest.py::test_a_manifest_that_says_other_things_than_its_native_file_is_refused",
    ],
    "G-012": ["test_registry.py::test_remotes_are_refused_by_name"],
    "G-013": ["store/test_catalogue.py::test_a_tag_that_points_elsewhere_is_left_alone"],
    "G-014": ["store/test_catalogue.py::test_of_two_who_expect_the_same_one_wins"],
    "G-015": [
        "store/test_catalogue.py::test_an_immutable_tag_neither_moves_nor_goes",
        "store/test_catalogue.py::test_a_tag_can_be_made_immutable_later",
    ],
    "G-016": ["test_registry.py::test_pushing_the_same_again_says_so_and_changes_nothing"],
    "G-017": ["store/test_catalogue.py::test_whatever_is_done_rows_log_and_blobs_agree"],
    "G-019": [
        "store/test_events.py::test_an_event_that_was_changed_is_noticed",
        "store/test_events.py::test_a_chain_that_lacks_or_swaps_events_is_noticed",
    ],
    "G-021": [
        "store/test_database.py::test_wal_is_used_where_its_bug_is_mended",
        "store/test_database.py::test_wal_is_not_used_on_a_network_file_system",
    ],
    "G-022": ["store/test_database.py::test_migrations_that_fail_leave_the_database_as_it_was"],
    "G-023": ["store/test_database.py::test_a_database_from_the_future_is_refused"],
    "G-024": [
        "store/test_crash.py::test_a_commit_that_did_not_happen_is_taken_back",
        "store/test_crash.py::test_killing_push_at_any_moment_leaves_a_sound_registry",
    ],
    "G-025": ["store/test_events.py::test_a_transaction_that_was_not_committed_is_taken_back"],
    "G-026": ["store/test_events.py::test_a_journal_of_another_story_is_refused_and_left_alone"],
    "G-027": ["store/test_events.py::test_a_journal_of_another_story_is_refused_and_left_alone"],
    "G-028": ["store/test_blobs.py::test_chunks_that_fail_leave_nothing"],
    "G-029": ["store/test_blobs.py::test_putting_the_same_bytes_again_mends_a_damaged_blob"],
    "G-030": ["store/test_gc.py::test_a_sweep_waits_for_pushes_and_gives_up"],
    "G-031": [
        "store/test_gc.py::test_a_sweep_waits_for_pushes_and_gives_up",
        "store/test_crash.py::test_a_collection_beside_pushes_takes_nothing_that_they_need",
    ],
    "G-032": ["store/test_crash.py::test_killing_push_at_any_moment_leaves_a_sound_registry"],
    "G-035": ["test_registry.py::test_a_pull_is_verified_and_leaves_nothing_when_it_fails"],
    "G-036": [
        "store/test_gc.py::test_what_has_a_tag_stays",
        "store/test_gc.py::test_what_another_repository_holds_stays",
    ],
    "G-038": [
        "store/test_gc.py::test_what_lost_its_tag_stays_for_the_grace_period_and_goes_then",
        "store/test_gc.py::test_orphans_and_leftovers_go_after_the_grace_period",
    ],
    "G-039": [
        "store/test_reindex.py::test_two_stories_are_not_mixed",
        "store/test_reindex.py::test_without_both_nothing_is_made_up",
    ],
    "G-040": ["store/test_reindex.py::test_a_lost_blob_is_recorded_as_lost"],
    "G-041": ["store/test_reindex.py::test_the_old_database_and_journal_are_kept"],
}
"""Rule to the tests in other files that show it."""


def implemented() -> set[str]:
    """The rules of the sections whose status is ``implemented``."""
    return {
        rule
        for text in sections().values()
        if re.search(r"^Status: implemented[.;]", text, re.MULTILINE)
        for rule, _ in RULE.findall(text)
    }


# Rules and style


def test_rules_are_numbered() -> None:
    """G rules are defined in order and without a gap, and no other is cited."""
    defined = [rule for rule, _ in RULE.findall(TEXT)]
    assert defined == [f"G-{number:03}" for number in range(1, len(defined) + 1)]
    assert set(re.findall(r"G-\d{3}", TEXT)) == set(defined)


@pytest.mark.parametrize(("rule", "sentence"), RULE.findall(TEXT), ids=[rule for rule, _ in RULE.findall(TEXT)])
def test_a_rule_is_one_normative_sentence(rule: str, sentence: str) -> None:
    """A rule is one sentence with a key word, so that it can be cited and broken by itself."""
    assert KEYWORD.search(sentence)
    assert sentence.endswith(".")
    assert not re.search(r"[.;] ", sentence)


def test_every_rule_that_is_implemented_is_shown() -> None:
    """The ids that tests show are those of the sections with the status ``implemented``, and their tests exist."""
    here = re.findall(r'^    """(G-\d{3}(?:, G-\d{3})*): ', BESIDE, re.MULTILINE)
    assert {rule for found in here for rule in found.split(", ")} | set(ELSEWHERE) == implemented()
    for file, _, name in (place.partition("::") for places in ELSEWHERE.values() for place in places):
        assert f"\ndef {name}(" in (TESTS / file).read_text(encoding="utf-8"), name


def test_rules_of_the_check_are_those_of_the_code() -> None:
    """S rules are defined in the table and in ``fsck``; test_fsck compares their sentences and breaks each."""
    assert [rule for rule, *_ in table("id", "severity", "rule")] == list(fsck.RULES)
    assert set(re.findall(r"S-\d{3}", TEXT)) == set(fsck.RULES)


def test_every_section_has_a_status() -> None:
    """A reader knows of every numbered section whether it is implemented, a contract, or informative."""
    for title, text in sections().items():
        (status,) = re.findall(r"^Status: (.*)\.$", text, re.MULTILINE)
        assert re.search(r"implemented|contract|informative", status), title


@pytest.mark.parametrize("word", ["must", "should", "may", "shall"])
def test_key_words_are_in_capitals(word: str) -> None:
    """The key words of BCP 14 do not occur in lower case, where nobody knows whether they bind."""
    assert re.findall(rf".*\b{word}\b.*", FENCE.sub("", TEXT)) == []


def test_one_sentence_a_line() -> None:
    """A line holds one sentence, so that changes of the text can be read."""
    assert [line for line in prose() if re.search(r"[.?!] [A-Z]", re.sub(r"^\d+\. ", "", line))] == []


def test_what_binds_is_a_rule() -> None:
    """Outside of rules the key words occur only where they are declared."""
    outside = [line for line in prose() if KEYWORD.search(line) and not RULE.match(line)]
    assert [line for line in outside if not line.startswith("The key words")] == []


def test_every_example_is_executed() -> None:
    """All JSON and grammar in the text is used by one of the tests below."""
    source = BESIDE
    used = set(re.findall(r'(?:body|example)\("([a-z-]+)"\)', source))
    assert used == {label for kind, label, _ in FENCE.findall(TEXT) if kind != "text"}
