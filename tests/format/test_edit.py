"""Edits keep what they do not know, and stay away from what they must not touch."""

from __future__ import annotations

import pytest

from lora_registry.adapter import Adapter, Base, Kind, Target, Tensor
from lora_registry.errors import UnsupportedError
from lora_registry.format.edit import edited


def adapter(**fields: object) -> Adapter:
    value = Tensor("F32", (2,), bytes(8))
    target = Target(name="norm.weight", kind=Kind.FULL, layout=(), shape=(2,), tensors={"value": value})
    return Adapter(targets=(target,), extra={"later": 1}, **fields)  # type: ignore[arg-type]


def test_an_edit_changes_what_it_is_told_and_keeps_the_rest() -> None:
    """Unknown fields ride along (P-026)."""
    changed = edited(adapter(info={"title": "old"}), base=Base(name="some/model"))
    assert changed.base.name == "some/model"
    assert changed.info == {"title": "old"}
    assert changed.extra == {"later": 1}


def test_an_adapter_that_needs_a_better_editor_is_left_alone() -> None:
    """A feature in requires.write that nobody here implements forbids every change (P-025)."""
    with pytest.raises(UnsupportedError, match=r"org\.example\.signed"):
        edited(adapter(requires_write=frozenset({"org.example.signed"})), info={})
