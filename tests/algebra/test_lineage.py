"""What an adapter that was made from others inherits, and what it does not."""

from __future__ import annotations

from typing import Any

import pytest
from algebra_adapters import adapter, target

from lora_registry.adapter import Adapter, Base
from lora_registry.algebra.lineage import Parent, descendant
from lora_registry.errors import InvalidInputError, UnsupportedError
from lora_registry.format.writer import encode_adapter


def child(*parents: Adapter, force: bool = False) -> tuple[Adapter, tuple[str, ...]]:
    """An adapter of the first one's targets."""
    return descendant([Parent(parent) for parent in parents], parents[0].targets, "test", {"a": 1}, force=force)


def described(**fields: Any) -> Adapter:
    return adapter(target(), **fields)


def test_what_all_agree_on_is_kept_and_what_one_alone_states_too() -> None:
    """Tokenizer, extensions, unknown fields and features; but what describes one parent's training is its own."""
    common: dict[str, Any] = {
        "tokenizer": {"digest": "sha256:" + "0" * 64},
        "extensions": {"com.example": {"x": 1}},
        "extra": {"later": True},
    }
    one = described(**common, training={"tool": "t"}, info={"title": "one"}, requires_read=frozenset({"loha"}))
    made, notes = child(one, described(requires_read=frozenset({"lokr"})), described(**common))
    assert (made.tokenizer, made.extensions, made.extra) == tuple(common.values())
    assert made.requires_read == {"loha", "lokr"}
    assert (made.training, made.info, notes) == ({}, {}, ())
    encode_adapter(made)


def test_what_is_contradicted_is_left_out_with_a_line_for_each() -> None:
    """Nothing is chosen for the user in silence."""
    one, two = (
        described(
            tokenizer={"chat_template": "sha256:" + digit * 64},
            extensions={"com.example": {"x": digit}},
            extra={"later": digit},
            base=Base(name="b", license=spdx),
            info={"license": spdx},
        )
        for digit, spdx in (("0", "MIT"), ("1", "ISC"))
    )
    made, notes = child(one, two)
    assert (made.tokenizer, made.extensions, made.extra, made.base, made.info) == ({}, {}, {}, Base(name="b"), {})
    assert [note.partition(":")[0] for note in notes] == [
        "base license",
        "license",
        "tokenizer",
        "extensions",
        "unknown fields",
    ]


def test_a_view_of_the_base_is_part_of_the_base() -> None:
    """An adapter trained on a quantized base is not one of the base as stored, unless nobody says so."""
    views = [Base(name="b", view={"scheme": scheme}) for scheme in ("nf4", "int8")]
    with pytest.raises(InvalidInputError, match="different bases: view"):
        child(*(described(base=base) for base in views))
    made, [note] = child(*(described(base=base) for base in views), force=True)
    assert (made.base.view, note.partition(":")[0]) == ({}, "base view")
    assert child(described(base=views[0]), described(base=Base(name="b")))[0].base == views[0]


def test_one_parent_passes_everything_on_but_its_foreign_configuration() -> None:
    """A configuration of another rank would be a lie."""
    one = described(training={"tool": "t"}, info={"title": "one"}, origin={"format": "peft"}, gate=(3,))
    made, notes = child(one)
    assert (made.training, made.info, made.gate, made.base) == (one.training, one.info, one.gate, one.base)
    assert (made.origin, notes) == ({}, ())


def test_an_editor_that_is_needed_for_one_parent_is_needed_for_the_child() -> None:
    """P-025: what may not be changed without knowing more is not combined either."""
    with pytest.raises(UnsupportedError, match="later-feature"):
        child(described(), described(requires_write=frozenset({"later-feature"})))
